"""Search over messages and titles: what is found, what any query makes of it, and how it does without FTS5."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wgllm import sessions_search
from wgllm.sessions import SessionStore
from wgllm.sessions_search import query_words
from wgllm.sessions_types import MessageState, SearchHit

HOSTILE = [
    "", " ", '"', '""', '"""', "*", "**", "a*b", "NEAR(", "NEAR(a b, 5)", "NOT", "AND OR NOT", "a AND", "OR b", "(",
    ")", "(((", "text:", "text : a", "-a", "^", "^a", "+", "a + b", "{a b}: c", "'", "';--", '"unbalanced', 'un"bal',
    "\\", "%", "_", "\0", "a\0b", "\ud800", "\x1b[2J", "🙂", "\u0301", "a\u0301", "\U0001e900", "東", "ไทย",
    "\ue000", "x" * 100_000, "a " * 100_000, "(" * 1000,
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "chats.db") as opened:
        yield opened


@pytest.fixture
def plain_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionStore]:
    """As it is where SQLite has no FTS5: any statement about the index raises."""
    monkeypatch.setattr(sessions_search, "has_fts5", lambda _: False)
    with SessionStore.open(tmp_path / "chats.db") as opened:
        with opened._database.reading() as connection:
            connection.set_authorizer(
                lambda action, first, *_: (
                    sqlite3.SQLITE_DENY if str(first).startswith("search_index") else sqlite3.SQLITE_OK
                )
            )
        yield opened


def found(store: SessionStore, query: str) -> list[str]:
    """The contents of the messages, in order."""
    return [store.message(h.message_id).content for h in store.search(query) if h.message_id is not None]


def marked(hit: SearchHit) -> list[str]:
    return [hit.snippet[start:end] for start, end in hit.highlights]


def fill(store: SessionStore, *texts: str) -> int:
    made = store.new_session(title="A title of its own")
    for text in texts:
        store.append(made.id, "user", text)
    return made.id


def test_words_their_beginnings_and_accents(store: SessionStore) -> None:
    fill(store, "Crème brûlée recipes", "a recipe for bread", "nothing of the kind")
    assert sorted(found(store, "recip")) == ["Crème brûlée recipes", "a recipe for bread"]
    assert found(store, "creme BRULEE") == ["Crème brûlée recipes"]
    assert found(store, "recipe bread") == ["a recipe for bread"]
    assert found(store, "cipe") == []
    assert found(store, "recipe missing") == []


def test_a_hit_says_where_and_what(store: SessionStore) -> None:
    session = fill(store, "one two " * 100 + "\x1b[31mneedle\x1b[0m\nin hay " + "three " * 100)
    (hit,) = store.search("needl")
    assert (hit.session_id, hit.title, hit.role) == (session, "A title of its own", "user")
    assert hit.snippet.startswith("…") and hit.snippet.endswith("…") and "needle in hay" in hit.snippet
    assert hit.snippet.isprintable() and len(hit.snippet) < 200
    assert marked(hit) == ["needle"]


def test_titles_are_found_and_follow_renaming(store: SessionStore) -> None:
    session = fill(store, "text")
    (hit,) = store.search("own title")
    assert (hit.session_id, hit.message_id, hit.role) == (session, None, None)
    assert marked(hit) == ["title", "own"]
    store.rename(session, "Renamed")
    assert store.search("own title") == []
    assert [h.message_id for h in store.search("rename")] == [None]


def test_replies_are_found_when_they_have_ended(store: SessionStore) -> None:
    session = fill(store)
    reply = store.begin_reply(session, content="unfinished")
    store.update_reply(reply.id, "unfinished words")
    store.flush()
    assert found(store, "words") == []
    store.finish_reply(reply.id, state=MessageState.STOPPED)
    assert found(store, "words") == ["unfinished words"]


def test_all_branches_are_found(store: SessionStore) -> None:
    session = fill(store, "first version")
    store.edit(store.path(session)[0].id, "second version")
    assert sorted(found(store, "version")) == ["first version", "second version"]


def test_limit_and_order(store: SessionStore) -> None:
    fill(store, *(f"word {'filler ' * i}" for i in range(30)))
    assert len(store.search("word", limit=7)) == 7
    assert found(store, "word")[0] == "word "  # the shortest says it most


def test_languages_without_blanks(store: SessionStore) -> None:
    fill(store, "我想去东京看樱花", "東京タワーの写真", "ภาษาไทยไม่เว้นวรรค", "한국어 문장입니다", "plain")
    assert found(store, "东京") == ["我想去东京看樱花"]
    assert found(store, "タワー") == ["東京タワーの写真"]
    assert found(store, "ไทย") == ["ภาษาไทยไม่เว้นวรรค"]
    assert found(store, "문장") == ["한국어 문장입니다"]
    (hit,) = store.search("樱花")
    assert marked(hit) == ["樱花"]


def test_of_long_messages_the_beginning_is_found(store: SessionStore) -> None:
    fill(store, "early " + "filler " * 100_000 + "late")
    (hit,) = store.search("early")
    assert marked(hit) == ["early"]
    assert len(store.search("filler")) == 1
    assert found(store, "late") == []


@pytest.mark.parametrize("query", HOSTILE, ids=[ascii(q[:12]) for q in HOSTILE])
def test_no_query_raises(store: SessionStore, query: str) -> None:
    fill(store, "a b c NEAR NOT AND OR text", "x" * 2000)
    for hit in store.search(query):
        assert hit.highlights


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=8) | st.sampled_from(HOSTILE[:40]), max_size=4).map(" ".join))
@example("".join(map(chr, range(1, 0x250))))
def test_no_query_raises_whatever_it_is(query: str) -> None:
    with sqlite3.connect(":memory:") as connection:
        words = query_words(query)
        if words:
            connection.execute(
                "CREATE VIRTUAL TABLE t USING fts5(x, tokenize = 'unicode61 remove_diacritics 2')"
            )
            match = " ".join(f'"{word}"*' for word in words)
            connection.execute("SELECT * FROM t WHERE t MATCH ?", (match,)).fetchall()
    connection.close()


def test_query_words() -> None:
    assert query_words('the "Crème brûlée"* NEAR(x)') == ["the", "Crème", "brûlée", "NEAR", "x"]
    assert query_words("e\u0301a -- \u0301") == ["e\u0301a"]
    assert len(query_words("a " * 1000)) == 32


# Without FTS5


def test_without_fts5_it_says_so_and_still_finds(plain_store: SessionStore) -> None:
    store = plain_store
    assert not store.full_text
    assert [n for n in store.notices if "FTS5" in n and n.isprintable()]
    session = fill(store, "Crème brûlée recipes", "a Recipe for \x1b[1mbread", "nothing")
    assert found(store, "recipe") == ["a Recipe for \x1b[1mbread", "Crème brûlée recipes"]
    assert found(store, "BREAD rec") == ["a Recipe for \x1b[1mbread"]
    (hit,) = store.search("bread")
    assert (hit.snippet, marked(hit)) == ("a Recipe for bread", ["bread"])
    assert [h.message_id for h in store.search("title own")] == [None]
    assert [h.message_id for h in store.search("t", limit=2)] == [None, 3]
    store.rename(session, "other")
    reply = store.begin_reply(session)
    store.finish_reply(reply.id, "an answer")
    assert found(store, "answer") == ["an answer"]
    store.delete(session)
    assert found(store, "answer") == []
    assert store.purge() == 1


@pytest.mark.parametrize("query", HOSTILE, ids=[ascii(q[:12]) for q in HOSTILE])
def test_no_query_raises_without_fts5(plain_store: SessionStore, query: str) -> None:
    fill(plain_store, "a b c NEAR NOT AND OR text")
    plain_store.search(query)


def test_an_index_catches_up_with_a_program_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chats.db"
    with SessionStore.open(path) as store:
        kept, gone = fill(store, "old text"), fill(store, "purged text")
    with monkeypatch.context() as patch:
        patch.setattr(sessions_search, "has_fts5", lambda _: False)
        with SessionStore.open(path) as store:
            store.append(kept, "user", "new text")
            store.rename(kept, "new title")
            store.delete(gone)
            store.purge()
    with SessionStore.open(path) as store:
        assert sorted(found(store, "text")) == ["new text", "old text"]
        assert [h.snippet for h in store.search("title")] == ["new title"]
