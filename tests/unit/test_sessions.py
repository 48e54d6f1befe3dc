"""Conversations: what is kept of sessions, messages, replies that are being generated, presets and inputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wgllm.errors import SessionStoreError, UsageError
from wgllm.sessions import SessionStore
from wgllm.sessions_types import Conversation, MessageState


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "chats.db", wall=clock, monotonic=clock) as opened:
        yield opened


def again(store: SessionStore, clock: Clock) -> SessionStore:
    """The store after a restart."""
    store.close()
    return SessionStore.open(store.file, wall=clock, monotonic=clock)


def contents(store: SessionStore, session_id: int) -> list[str]:
    return [m.content for m in store.path(session_id)]


def saved(store: SessionStore, message_id: int) -> str:
    """What another process would see."""
    with SessionStore.open(store.file) as other:
        return other.message(message_id).content


# Sessions


def test_a_session_comes_back_as_it_was_left(store: SessionStore, clock: Clock) -> None:
    made = store.new_session(
        model="smollm2", system_prompt="Be brief.", settings={"temperature": 0.5, "stop": ["\n"]}
    )
    store.append(made.id, "user", "Hello")
    store.update_session(made.id, draft="half a quest")
    store.kept.put("open", made.id)
    before = store.session(made.id)
    with again(store, clock) as later:
        assert later.session(later.kept.get("open")) == before
        assert (before.draft, before.settings["stop"], before.model) == ("half a quest", ["\n"], "smollm2")
        assert contents(later, made.id) == ["Hello"]
        changed = later.update_session(made.id, model="other", settings={}, system_prompt="")
        assert (changed.model, changed.settings, changed.system_prompt) == ("other", {}, "")
        assert (changed.draft, changed.updated) == (before.draft, before.updated)


def test_the_list_has_the_last_updated_first(store: SessionStore, clock: Clock) -> None:
    first, second = store.new_session(), store.new_session(title="Second")
    clock.now += 10
    store.append(first.id, "user", "What is new?\nTell me \x1b[31mall\x1b[0m of it " + "again " * 50)
    one, two = store.sessions()
    assert (one.id, one.title, one.n_messages, one.updated) == (first.id, "What is new?", 1, clock.now)
    assert one.snippet.startswith("What is new? Tell me all of it again") and one.snippet.endswith("…")
    assert len(one.snippet) <= 120
    assert (two.id, two.snippet, two.n_messages) == (second.id, "", 0)
    assert [s.id for s in store.sessions(limit=1, offset=1)] == [second.id]


def test_the_list_shows_what_follows_the_reasoning(store: SessionStore) -> None:
    made = store.new_session()
    reply = store.begin_reply(made.id)
    store.finish_reply(reply.id, "<think>" + "hm " * 1000 + "</think>\n\n42.")
    assert store.sessions()[0].snippet == "42."


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Why is the sky blue?", "Why is the sky blue?"),
        ("\n\n  ## **Bread**\nrecipe", "Bread"),
        ("```python\nprint(1)\n```", "print(1)"),
        ("- > 1. item", "item"),
        ("\x1b]0;owned\x07Hi\x00 there\r\n", "Hi� there"),
        ("word " * 40, "word " * 10 + "word…"),
        ("x" * 100, "x" * 59 + "…"),
        ("…?!", "…?!"),
        ("   \n", ""),
    ],
)
def test_the_first_message_makes_the_title(store: SessionStore, text: str, title: str) -> None:
    made = store.new_session()
    store.append(made.id, "user", text)
    assert store.session(made.id).title == title


def test_a_title_of_the_users_stays_until_it_is_blank(store: SessionStore) -> None:
    made = store.new_session(title="Mine")
    store.append(made.id, "user", "First words")
    assert store.session(made.id).title == "Mine"
    assert store.rename(made.id, "  two\nlines\x1b[2J ").title == "two lines"
    store.edit(store.path(made.id)[0].id, "Edited words")
    assert store.session(made.id).title == "two lines"
    assert store.rename(made.id, " ").title == "First words"


def test_delete_and_undo_and_purge(store: SessionStore, clock: Clock) -> None:
    kept, gone = store.new_session(title="kept"), store.new_session(title="gone")
    store.append(gone.id, "user", "to be forgotten")
    store.append(kept.id, "user", "to be remembered")
    store.delete(gone.id)
    assert [s.id for s in store.sessions()] == [kept.id]
    assert [s.id for s in store.sessions(deleted=True)] == [gone.id]
    assert not store.search("forgotten")
    store.undelete(gone.id)
    assert len(store.sessions()) == 2 and store.search("forgotten")
    store.delete(gone.id)
    assert store.purge(days=7) == 0
    clock.now += 6 * 86400
    with again(store, clock) as later:
        assert later.session(gone.id).deleted_at is not None
        clock.now += 2 * 86400
        with again(later, clock) as last:
            with pytest.raises(UsageError, match="no conversation"):
                last.session(gone.id)
            assert contents(last, kept.id) == ["to be remembered"]
            assert last.purge() == 0


def test_what_is_said_brings_a_deleted_session_back(store: SessionStore, clock: Clock) -> None:
    session = store.new_session().id
    said = store.append(session, "user", "Hi")
    store.delete(session)
    store.update_session(session, draft="typed")
    assert not store.sessions(), "only what is said counts"
    reply = store.begin_reply(session)
    assert [s.id for s in store.sessions()] == [session]
    store.delete(session)
    store.finish_reply(reply.id, "Hello")
    assert not store.sessions(), "a reply that ends is no wish to have it back"
    store.edit(said.id, "Hey")
    clock.now += 100 * 86400.0
    assert store.purge(7) == 0 and contents(store, session) == ["Hey"]


def test_purging_leaves_nothing_of_a_long_chain(store: SessionStore) -> None:
    made = store.new_session()
    last = store.append(made.id, "user", "secret")
    whole = store.conversation(made.id)
    links = [last._replace(id=i, parent_id=i - 1 or None) for i in range(1, 1501)]  # triggers nest 1000 deep
    longer = Conversation(
        replace(whole.session, leaf_id=1500), tuple(links), {i: i + 1 for i in range(1, 1500)}
    )
    store.delete(store.add_conversation(longer).id)
    store.delete(made.id)
    assert store.purge() == 2
    with pytest.raises(UsageError, match="no message"):
        store.message(last.id)
    with store._database.reading() as connection:
        for table in ("sessions", "messages", "visited", "to_index", "search_index"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


# Replies


def test_a_reply_is_saved_before_it_is_generated(store: SessionStore) -> None:
    made = store.new_session()
    asked = store.append(made.id, "user", "Why?")
    reply = store.begin_reply(made.id, after=asked.id, model="smollm2")
    with SessionStore.open(store.file) as other:
        assert [m.state for m in other.path(made.id)] == [MessageState.COMPLETE, MessageState.PARTIAL]
    done = store.finish_reply(
        reply.id, "Because.", finish_reason="stop", stats={"generated_tokens": 2}, token_count=2
    )
    assert done == store.message(reply.id)
    assert (done.content, done.state, done.finish_reason) == ("Because.", MessageState.COMPLETE, "stop")
    assert (done.stats, done.token_count, done.model) == ({"generated_tokens": 2}, 2, "smollm2")


def test_partial_text_is_written_about_once_a_second(store: SessionStore, clock: Clock) -> None:
    made = store.new_session()
    reply = store.begin_reply(made.id)
    writes = []
    with store._database.reading() as connection:
        connection.set_trace_callback(lambda sql: writes.append(sql) if sql.startswith("UPDATE") else None)
    text = ""
    for i in range(1000):  # ten seconds
        clock.now += 0.01
        text += f"{i} "
        store.update_reply(reply.id, text)
        store.flush_due()
    assert 10 <= len(writes) <= 13
    assert store.message(reply.id).content == text == contents(store, made.id)[0]
    assert saved(store, reply.id) != text
    # Now no token comes; the timer sees to it that what there is gets saved.
    clock.now += 0.85
    store.flush_due()
    assert saved(store, reply.id) == text
    n = len(writes)
    clock.now += 100
    store.flush_due()
    store.flush()
    assert len(writes) == n


def test_flush_does_not_wait(store: SessionStore) -> None:
    reply = store.begin_reply(store.new_session().id)
    store.update_reply(reply.id, "so far")
    assert saved(store, reply.id) == ""
    store.flush()
    assert saved(store, reply.id) == "so far"


def test_two_replies_at_once(store: SessionStore, clock: Clock) -> None:
    one, two = (store.begin_reply(store.new_session().id) for _ in range(2))
    store.update_reply(one.id, "1")
    clock.now += 1
    store.update_reply(two.id, "2")
    store.flush_due()
    assert (saved(store, one.id), saved(store, two.id)) == ("1", "2")
    store.finish_reply(one.id)
    assert store.message(one.id).content == "1"
    assert store.message(two.id).state is MessageState.PARTIAL


@pytest.mark.parametrize("state", [MessageState.STOPPED, MessageState.ERROR, MessageState.INTERRUPTED])
def test_a_reply_that_did_not_end_keeps_its_text(store: SessionStore, state: MessageState) -> None:
    reply = store.begin_reply(store.new_session().id, content="Begin: ")
    store.update_reply(reply.id, "Begin: with this")
    ended = store.finish_reply(reply.id, state=state)
    assert (ended.content, ended.state) == ("Begin: with this", state)
    assert store.search("with")


def test_closing_keeps_the_text_and_marks_the_reply(store: SessionStore, clock: Clock) -> None:
    made = store.new_session()
    reply = store.begin_reply(made.id)
    store.update_reply(reply.id, "all of it")
    with again(store, clock) as later:
        message = later.message(reply.id)
        assert (message.content, message.state) == ("all of it", MessageState.INTERRUPTED)
        assert later.search("all")


def test_misuse_is_told_in_a_line(store: SessionStore) -> None:
    made, other = store.new_session(), store.new_session()
    user = store.append(made.id, "user", "x")
    reply = store.begin_reply(made.id)
    store.finish_reply(reply.id)
    for action in (
        lambda: store.session(99),
        lambda: store.rename(99, "x"),
        lambda: store.delete(99),
        lambda: store.append(99, "user", "x"),
        lambda: store.append(made.id, "robot\x1b", "x"),
        lambda: store.append(other.id, "user", "x", after=user.id),
        lambda: store.append(made.id, "user", "x", after=99),
        lambda: store.message(99),
        lambda: store.edit(99, "x"),
        lambda: store.siblings(99),
        lambda: store.switch(99),
        lambda: store.conversation(99),
        lambda: store.regenerate(user.id),
        lambda: store.update_reply(reply.id, "x"),
        lambda: store.finish_reply(reply.id),
        lambda: store.update_session(made.id, settings={"x": float("nan")}),
        lambda: store.update_session(made.id, settings={"x": object()}),
        lambda: store.presets.save(" \n", {}),
        lambda: store.presets.delete("none"),
    ):
        with pytest.raises(UsageError) as caught:
            action()
        assert str(caught.value).isprintable()
    assert len(store.conversation(made.id).messages) == 2


def test_a_transaction_that_fails_leaves_nothing(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.new_session()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wgllm.sessions_tree.add", fail)
        with pytest.raises(KeyboardInterrupt):
            store.append(made.id, "user", "x")
    assert store.sessions()[0].n_messages == 0
    store.append(made.id, "user", "y")
    assert contents(store, made.id) == ["y"]


# Texts that may be anything


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\0b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("x\udfffy\udc00", "x\ufffdy\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ufeff\x1b]52;c;aGk=\x07 \x9b2J\u202e\r\n\x7f", "\ufeff\x1b]52;c;aGk=\x07 \x9b2J\u202e\r\n\x7f"),
        ("'); DROP TABLE messages; --", "'); DROP TABLE messages; --"),
    ],
)
def test_hostile_texts_are_kept(store: SessionStore, text: str, kept: str) -> None:
    made = store.new_session(title=text, model=text, system_prompt=text, settings={text: text})
    store.append(made.id, "user", text)
    reply = store.begin_reply(made.id, model=text, content=text)
    store.update_reply(reply.id, text * 2)
    assert store.message(reply.id).content.startswith(kept)
    store.finish_reply(reply.id, text, finish_reason=text, stats={text: 1})
    store.update_session(made.id, draft=text)
    store.rename(made.id, text)
    store.inputs.add(text)
    store.presets.save("n" + text, {text: 1}, text)
    assert contents(store, made.id) == [kept, kept]
    session = store.session(made.id)
    assert session.draft == session.system_prompt == session.model == kept
    assert session.title.isprintable() or "\u202e" in session.title or "\ufeff" in session.title
    assert store.inputs.recent() == [kept]
    assert "\x1b" not in store.sessions()[0].snippet
    store.search(text)


def test_ten_megabytes(store: SessionStore, clock: Clock) -> None:
    made = store.new_session()
    text = "ten megabytes of wörds \n" * (10_000_000 // 24)
    message = store.append(made.id, "user", text)
    reply = store.begin_reply(made.id)
    clock.now += 1
    store.update_reply(reply.id, text)
    store.finish_reply(reply.id)
    assert contents(store, made.id) == [text, text]
    assert {hit.message_id for hit in store.search("megabytes")} >= {message.id, reply.id}
    with again(store, clock) as later:
        assert contents(later, made.id) == [text, text]


def test_more_than_the_database_takes_is_refused(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wgllm.sessions_text.MAX_TEXT", 10)
    made = store.new_session()
    with pytest.raises(UsageError, match="11 characters is too long"):
        store.append(made.id, "user", "x" * 11)
    assert store.sessions()[0].n_messages == 0


# Presets, inputs, values


def test_presets(store: SessionStore, clock: Clock) -> None:
    store.presets.save("precise", {"temperature": 0}, "Be exact.")
    store.presets.save("a b\n", {"top_k": 5})
    store.presets.save("precise", {"temperature": 0.1}, "Be very exact.")
    with again(store, clock) as later:
        assert [tuple(p) for p in later.presets.list()] == [
            ("a b", {"top_k": 5}, ""),
            ("precise", {"temperature": 0.1}, "Be very exact."),
        ]
        later.presets.delete("precise")
        assert [p.name for p in later.presets.list()] == ["a b"]


def test_inputs_are_recalled_across_sessions(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("one", "two", "two", "  ", "one", "x" * (store.inputs.LONGEST + 1)):
        store.inputs.add(text)
    assert store.inputs.recent() == ["one", "two", "one"]
    assert store.inputs.recent(1) == ["one"]
    monkeypatch.setattr(store.inputs, "MOST", 5)
    for i in range(20):
        store.inputs.add(str(i))
    assert store.inputs.recent() == ["19", "18", "17", "16", "15"]


def test_values(store: SessionStore, clock: Clock) -> None:
    store.kept.put("sidebar", {"width": 30, "open": True})
    store.kept.put("none", None)
    with again(store, clock) as later:
        assert later.kept.get("sidebar") == {"width": 30, "open": True}
        assert later.kept.get("none", 1) is None
        assert later.kept.get("missing", 1) == 1


# Threads


def test_threads_take_turns(store: SessionStore) -> None:
    made = store.new_session()
    reply = store.begin_reply(made.id)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(30):
                own = store.new_session()
                store.append(own.id, "user", f"thread {number} {i}")
                store.update_reply(reply.id, f"{number} {i}")
                store.flush()
                store.path(own.id)
                store.search("thread")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store.sessions()) == 121
    assert all(s.n_messages == 1 for s in store.sessions())


def test_a_closed_store_says_so(store: SessionStore) -> None:
    store.close()
    store.close()
    with pytest.raises(SessionStoreError, match="closed"):
        store.sessions()
