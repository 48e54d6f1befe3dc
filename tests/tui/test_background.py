"""What goes wrong in the background, or comes in another order than one thinks: told, and nothing ends."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Button

from tests.tui.running import Running, in_loop, running
from wgllm.errors import UsageError
from wgllm.sampling import SamplingParams
from wgllm.sessions import SessionStore
from wgllm.sessions_types import MessageState
from wgllm.tui.actions import checked_setting
from wgllm.tui.banner import Banner
from wgllm.tui.conversation import Conversation
from wgllm.tui.dialogs import Choice
from wgllm.tui.inspector import Branch, TokenInspector
from wgllm.user_paths import user_path


async def inspector(run: Running) -> TokenInspector:
    await run.until(lambda: isinstance(run.app.screen, TokenInspector), "the inspector")
    assert isinstance(run.app.screen, TokenInspector)
    return run.app.screen


# Background tasks


@in_loop
async def test_a_mistake_in_the_background_is_told(tmp_path: Path) -> None:
    async def wrong() -> None:
        raise KeyError("x")

    async def refused() -> None:
        raise UsageError("not that way")

    async with running(tmp_path, failures=True) as run:
        await run.ready()
        run.app.run_worker(wrong())
        run.app.prompt_bar.run_worker(wrong())  # a widget's own
        run.app.run_worker(refused())
        run.app.call_later(refused)  # in the application's loop
        await run.until(lambda: len(run.app.failures) == 2 and run.notes().count("not that way") == 2)
        assert "KeyError" in run.notes()
        await run.talk("Still there?")
    assert [type(f) for f in run.app.failures] == [KeyError, KeyError]
    with pytest.raises(KeyError):
        async with running(tmp_path) as run:
            run.app.run_worker(wrong())
            await run.until(lambda: run.app.failures)


@in_loop
async def test_loading_that_raises_anything_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, failures=True) as run:
        await run.ready()
        client = run.app.client
        assert client is not None

        async def load(*arguments: Any) -> None:
            raise ZeroDivisionError("of a driver")

        with monkeypatch.context() as patch:
            patch.setattr(client, "load", load)
            run.app.start_loading()
            await run.until(lambda: run.app.query_one(Banner).shown, "the banner")
        await run.until(lambda: "ZeroDivisionError" in run.screen_text(), "why")
        assert run.app.status.figures.doing == "no model"
        await run.pilot.press("f5")
        await run.talk("Hi")


@in_loop
async def test_a_question_is_refused_where_settings_make_no_sense(tmp_path: Path) -> None:
    async with running(tmp_path, failures=True) as run:
        await run.ready()
        run.app.settings["sampling"] = {"logit_bias": 3}
        await run.send("Hi")
        await run.until(lambda: run.app.failures and run.app.reply is None, "the reply's end")
        run.app.settings.pop("sampling")
        await run.talk("Hi")


@in_loop
async def test_what_runs_in_the_background_ends_before_the_screen_goes(tmp_path: Path) -> None:
    seen: list[bool] = []

    async with running(tmp_path) as run:
        await run.ready()

        async def lasting() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                run.app.status.show(doing="there")  # there is a screen with all its widgets
                seen.append(run.app.gone)

        run.app.begin(lasting())
        run.app.run_worker(lasting())
        await run.pilot.pause()
        assert not run.app.gone and not seen
    assert seen == [True, True]


@in_loop
async def test_a_reply_that_ends_while_it_gets_its_widget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Conversation.show

    async with running(tmp_path, prepare=lambda worker: worker.hold.clear()) as run:

        async def stopped(conversation: Conversation, path: Any, **options: Any) -> None:
            if options["streaming"] is not None:
                run.app.stop()
            await show(conversation, path, **options)

        monkeypatch.setattr(Conversation, "show", stopped)
        await run.send("Hi")
        await run.until(lambda: "stopped before it began" in run.screen_text(), "how it ended")
        assert not run.views[-1].streaming and run.app.reply is None


@in_loop
async def test_a_reply_of_a_dead_window_that_is_looked_at_while_it_gets_its_widget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Conversation.show

    async with running(tmp_path) as run:
        session = run.store.new_session()
        run.store.append(session.id, "user", "Hi")
        reply = run.store.begin_reply(session.id)

        async def ended(conversation: Conversation, path: Any, **options: Any) -> None:
            if path and path[-1].id == reply.id and run.store.message(reply.id).state is MessageState.PARTIAL:
                run.store.finish_reply(reply.id, "Half", state=MessageState.INTERRUPTED)
                run.app._looked = 0.0
                run.app.tick()
                await asyncio.sleep(0.1)
            await show(conversation, path, **options)

        monkeypatch.setattr(Conversation, "show", ended)
        await run.app.open_session(session.id)
        await run.until(lambda: "interrupted: the program ended" in run.screen_text(), "how it ended")


@in_loop
async def test_of_two_banners_at_once_the_later_one_holds(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.ready()
        banner = run.app.query_one(Banner)
        texts = {"one": (("a", "A"), ("b", "B")), "two": (("c", "C"),)}
        await asyncio.gather(*(banner.show(text, choices) for text, choices in texts.items()))
        await run.until(lambda: "two" in run.screen_text(), "the later one")
        assert [str(button.label) for button in banner.query(Button)] == ["C"]
        showing = asyncio.create_task(banner.show("three", texts["one"]))
        await asyncio.sleep(0)
        banner.hide()
        await showing
        assert not banner.shown


# The inspector


@in_loop
async def test_the_model_dies_while_a_reply_is_looked_into(tmp_path: Path) -> None:
    async with running(tmp_path, "abc") as run:
        await run.talk("Hi")
        await run.command("/inspect")
        screen = await inspector(run)
        run.worker.die()
        await run.until(lambda: run.app.query_one(Banner).shown, "the banner")
        screen.dismiss(Branch(1, ord("x")))
        await run.until(lambda: "F5 loads the model again" in run.notes(), "why there is no branch")
        assert run.contents() == [("user", "Hi"), ("assistant", "abc")] and run.app.reply is None
        await run.pilot.press("f5")
        await run.talk("Go on")


@in_loop
async def test_a_question_ends_looking_into_a_reply(tmp_path: Path) -> None:
    async with running(tmp_path, ["abc", "second"]) as run:
        await run.talk("Hi")
        hold = run.hold()
        look = asyncio.create_task(run.command("/inspect"))
        await run.until(lambda: run.app._looking is not None and run.app._looking.request is not None)
        await run.send("And?")
        await run.until(lambda: run.app.reply is not None, "the next reply")
        hold.set()
        await look
        await run.until(lambda: len(run.app.path) == 4 and run.app.reply is None, "the reply")
        await run.replied()
        assert run.contents()[-1] == ("assistant", "second")
        assert len(run.app.screen_stack) == 1 and run.app._looking is None
        await run.command("/inspect")
        (await inspector(run)).dismiss(None)


@in_loop
async def test_another_conversation_ends_looking_while_the_model_loads(tmp_path: Path) -> None:
    async with running(tmp_path, "abc") as run:
        await run.talk("Hi")
        run.worker.hold.clear()
        run.app.start_loading()
        looks = [asyncio.create_task(run.command("/inspect")) for _ in range(2)]
        await run.until(lambda: "reads a reply already" in run.notes(), "one of them is refused")
        await run.pilot.press("ctrl+n")
        await run.until(lambda: run.app.session is None, "a new conversation")
        run.worker.hold.set()
        await asyncio.gather(*looks)
        await run.ready()
        assert len(run.app.screen_stack) == 1 and not run.engine.requests


@in_loop
async def test_a_branch_is_not_made_elsewhere(tmp_path: Path) -> None:
    async with running(tmp_path, "abc") as run:
        view = await run.talk("Hi")
        await run.app.open_session(None)
        with pytest.raises(UsageError, match="nothing was branched"):
            await run.app.branch_from(view.message, list(b"ab"))


@in_loop
async def test_conversations_opened_at_the_same_time(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.ready()
        ids = []
        for word in ("one", "two", "three"):
            ids.append(run.store.new_session(title=word).id)
            run.store.append(ids[-1], "user", word)
        await asyncio.gather(*(run.app.open_session(i) for i in ids), run.app.show_path())
        assert run.app.session is not None and run.app.session.id == ids[-1]
        assert [v.message.content for v in run.views] == ["three"] and run.app.opened


# What is typed


@pytest.mark.parametrize(
    "value", ["3", "-1", "nan", "inf", "1e999", "x", "[]", "5=1", "5+", "5+nan", "0-inf 7+x"]
)
def test_settings_are_refused_in_a_line(value: str) -> None:
    for name in (
        *SamplingParams.__dataclass_fields__,
        "max_tokens",
        "ctx_size",
        "metadata",
        "path",
        "cls",
        "self",
        "",
    ):
        try:
            checked_setting(name, value)
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert name in (*SamplingParams.__dataclass_fields__, "max_tokens", "ctx_size")


def test_a_bias_as_llama_cpp_writes_it() -> None:
    assert checked_setting("logit-bias", "5-inf 7+1.5,9-2") == (
        "logit_bias",
        {5: -float("inf"), 7: 1.5, 9: -2.0},
    )


@in_loop
async def test_commands_that_make_no_sense(tmp_path: Path) -> None:
    async with running(tmp_path, "abc") as run:
        await run.talk("Hi")
        for typed, told in {
            "/set metadata 3": "no sampling option",
            "/set logit_bias 3": "TOKEN+BIAS",
            "/export ~no-such-user/x.md": "no such user",
            "/load ~no-such-user/x": "no such user",
        }.items():
            await run.send(typed)
            await run.until(lambda told=told: told in run.notes(), typed)
            run.app.clear_notifications()
        await run.command("/set logit_bias 5-inf")
        await run.talk("Go on")
        assert dict(run.engine.requests[-1].sampling.logit_bias) == {5: -float("inf")}


def test_user_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x" and user_path("a~b") == Path("a~b")
    for wrong in ("~no-such-user/x", "a\0b"):
        with pytest.raises(UsageError):
            user_path(wrong)


# The file


@in_loop
async def test_another_program_holds_the_file(tmp_path: Path) -> None:
    async with running(tmp_path, "abc") as run:
        await run.talk("Hi")
        run.store.patience = 0.05
        other = sqlite3.connect(run.store.file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        await run.send("/help")
        await run.until(lambda: len(run.app.screen_stack) == 2, "help")
        await run.pilot.press("escape")
        run.app.keep_place()
        run.app.theme = "nord"
        await run.pilot.pause()
        assert run.notes().count("not kept yet") == 1, "told once"
        for typed in ("/rename Other", "/delete"):
            run.app.clear_notifications()
            run.told.clear()
            await run.command(typed)
            assert "another program has held the file" in run.notes(), typed
        run.told.clear()
        await run.send("Refused")
        await run.until(lambda: "another program has held the file" in run.notes(), "the refusal")
        assert run.app.prompt_bar.prompt.text == "Refused" and len(run.app.path) == 2
        other.execute("ROLLBACK")
        other.close()
        await run.pilot.press("enter")
        await run.until(lambda: len(run.app.path) == 4 and run.app.reply is None)
    with SessionStore.open(tmp_path / "chats.db") as store:
        assert store.kept.get("theme") == "nord" and {"/help", "Refused"} <= set(store.inputs.recent())


@in_loop
async def test_what_another_instance_deleted_comes_back_by_going_on(tmp_path: Path) -> None:
    async with running(tmp_path, "abc", size=(120, 30)) as run:
        await run.talk("Hi")
        with SessionStore.open(tmp_path / "chats.db") as other:
            other.delete(1)
        await run.talk("And?")
        assert [s.id for s in run.store.sessions()] == [1] and run.store.session(1).deleted_at is None
        assert "● Hi" in run.screen_text()


# The context


@in_loop
async def test_a_new_conversation_where_the_context_is_full(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("word " * 40)
    question = f"What says @{notes}?"
    async with running(tmp_path, "abc", ctx_size=256, size=(100, 30)) as run:
        await run.ready()
        await run.send(question)
        await run.until(lambda: isinstance(run.app.screen, Choice), "the question")
        assert isinstance(run.app.screen, Choice)
        run.app.screen.dismiss("new")
        await run.until(lambda: run.app.session is None and run.app.opened, "a new conversation")
        prompt = run.app.prompt_bar.prompt
        await run.until(lambda: prompt.full_text == question, "the question in the prompt")
        assert run.app.reply is None and not run.engine.requests
        assert [m.role for m in run.store.path(1)] == ["user", "assistant"]


@in_loop
async def test_context_new_while_a_reply_streams(tmp_path: Path) -> None:
    async with running(tmp_path, "word " * 20, delay=0.5) as run:
        await run.ready()
        await run.send("Hi")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 2, "tokens")
        run.app.run_worker(run.app.run_command("/context"))
        await run.until(lambda: isinstance(run.app.screen, Choice), "the question")
        await run.type("a draft")
        run.app.screen.dismiss("new")
        await run.until(lambda: run.app.session is None and run.app.opened, "a new conversation")
        assert run.app.reply is not None, "it goes on"
        run.engine.delay = 0.0
        await run.until(lambda: run.app.reply is None, "the reply's end")
        await run.pilot.pause()
        assert run.app.session is None and "Hi" not in run.app.prompt_bar.prompt.text
        assert run.store.path(1)[-1].content == "word " * 20


@in_loop
async def test_the_context_that_is_offered_has_room(tmp_path: Path) -> None:
    for trained, wanted in ((8192, "grow 1024"), (1000, "grow 1000"), (700, None)):
        async with running(tmp_path, "abc", ctx_size=256) as run:
            await run.ready()
            assert run.app.facts is not None
            object.__setattr__(run.app.facts, "n_ctx_train", trained)
            await run.send("x" * 800)
            await run.until(lambda run=run: isinstance(run.app.screen, Choice), "the question")
            offered = [key for key, _ in run.app.screen._answers]  # type: ignore[attr-defined]
            assert [key for key in offered if key.startswith("grow")] == ([wanted] if wanted else [])
            await run.pilot.press("escape")
            await run.app.open_session(None)
