"""Branches, the list of conversations, files, the context, the model's process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tui.running import Running, in_loop, running
from wgllm.errors import DeviceError
from wgllm.sessions_types import MessageState
from wgllm.tui.banner import Banner
from wgllm.tui.base import Start
from wgllm.tui.dialogs import Choice
from wgllm.tui.message import Arrow
from wgllm.tui.sidebar import ChatList


@in_loop
async def test_regenerate_and_edit_keep_branches(tmp_path: Path) -> None:
    async with running(tmp_path, ["one", "two", "three"], size=(80, 30)) as run:
        await run.talk("Hi")
        await run.pilot.press("ctrl+r")
        await run.until(lambda: len(run.engine.requests) == 2)
        view = await run.replied()
        assert view.message.content == "two" and "‹ 2/2 ›" in run.screen_text().replace("  ", " ")
        assert run.engine.requests[0].tokens == run.engine.requests[1].tokens
        view.focus()
        await run.pilot.press("left")
        await run.until(lambda: run.contents()[-1] == ("assistant", "one"))
        await run.pilot.click(run.views[-1].query(Arrow).last())
        await run.until(lambda: run.contents()[-1] == ("assistant", "two"))
        run.views[0].focus()
        await run.pilot.press("e")
        assert run.app.prompt_bar.prompt.text == "Hi" and "Changing an earlier message" in run.screen_text()
        await run.send("Hello")
        await run.until(lambda: len(run.engine.requests) == 3)
        await run.replied()
        assert run.contents() == [("user", "Hello"), ("assistant", "three")]
        run.views[0].focus()
        await run.pilot.press("left")
        await run.until(lambda: run.contents() == [("user", "Hi"), ("assistant", "two")])


@in_loop
async def test_what_was_typed_first_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.type("half a question")
    async with running(tmp_path) as run:
        assert run.app.prompt_bar.prompt.text == "half a question"


@in_loop
async def test_a_draft_outlives_editing(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.talk("Hi")
        await run.type("half a")
        await run.command("/edit")
        assert run.app.prompt_bar.prompt.text == "Hi"
        await run.pilot.press("escape")
        assert run.app.editing is None and run.app.prompt_bar.prompt.text == "half a"
        await run.command("/edit")
        await run.send("Hello")
        await run.until(lambda: len(run.engine.requests) == 2)
        await run.replied()
        assert run.app.prompt_bar.prompt.text == "half a"
        await run.command("/edit")
        await run.type("Hello again")
    async with running(tmp_path, start=Start(default_model=str(tmp_path / "fake.gguf"), resume=1)) as run:
        await run.until(lambda: run.app.editing is not None)
        assert run.app.prompt_bar.prompt.text == "Hello again"
        await run.pilot.press("escape")
        assert run.app.prompt_bar.prompt.text == "half a"


def top(run: Running) -> list[str]:
    """The first lines of the screen, without the scroll bar."""
    return [line[:50].rstrip() for line in run.screen_text().split("\n")[:6]]


@in_loop
async def test_comes_back_to_where_one_was_reading(tmp_path: Path) -> None:
    long = "\n\n".join(f"## Part {i}\n\nwords of part {i}" for i in range(30))
    async with running(tmp_path, long) as run:
        await run.talk("Hi")
        await run.talk("And?")
        assert run.app.conversation.place is None, "the end is followed"
        await run.pilot.press("pageup", "pageup", "pageup")
        place = run.app.conversation.place
        assert place is not None
        seen = top(run)
        first = run.app.session
        assert first is not None
        await run.app.open_session(None)
        await run.talk("Another one")
        await run.app.open_session(first.id)
        await run.until(lambda seen=seen: top(run) == seen, str(seen))
    for width in (80, 60):
        start = Start(default_model=str(tmp_path / "fake.gguf"), resume=first.id)
        async with running(tmp_path, start=start, size=(width, 24)) as run:
            await run.until(lambda seen=seen: top(run) == seen, str(seen))
            await run.until(lambda: run.app.conversation._held is None)
            assert run.app.conversation.place == place
            await run.pilot.press("ctrl+end")
            await run.until(lambda: run.app.conversation.place is None)
            run.app.conversation.messages.scroll_to(y=0, animate=False)
            await run.until(lambda: run.app.conversation.place is not None)
            await run.pilot.press("pagedown")
            place = run.app.conversation.place
            seen = top(run)


@in_loop
async def test_list_search_rename_delete_undo(tmp_path: Path) -> None:
    async with running(tmp_path, size=(120, 30)) as run:
        await run.talk("Where do apples grow?")
        await run.pilot.press("ctrl+n")
        await run.until(lambda: run.app.session is None)
        await run.talk("What do bees eat?")
        chats = run.app.sidebar.query_one(ChatList)
        assert chats.option_count == 2
        await run.pilot.press("ctrl+b")
        for key in "apple":
            await run.pilot.press(key)
        await run.until(lambda: "apples" in str(chats.get_option_at_index(0).prompt))
        await run.pilot.press("enter", "enter")
        await run.until(lambda: run.app.path and run.app.path[0].content == "Where do apples grow?")
        apples = run.app.session
        assert apples is not None
        await run.pilot.press("ctrl+b", "escape", "down")
        await run.command("/rename Fruit")
        assert run.store.session(apples.id).title == "Fruit"
        await run.until(lambda: "Fruit" in run.screen_text())
        await run.command("/delete")
        assert run.app.session is None and len(run.store.sessions()) == 1
        await run.command("/undo")
        assert run.app.session is not None and run.app.session.id == apples.id
        chats.focus()
        chats.highlighted = 0
        await run.pilot.press("d")
        await run.until(lambda: len(run.store.sessions()) == 1)
        await run.pilot.press("u")
        await run.until(lambda: len(run.store.sessions()) == 2)
        chats.focus()
        await run.pilot.press("r")
        await run.until(lambda: run.app.screen.is_modal)
        await run.pilot.press("ctrl+u", "x", "enter")
        await run.until(lambda: "x" in {s.title for s in run.store.sessions()})


@in_loop
async def test_files_of_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with running(tmp_path, "An **answer**") as run:
        await run.talk("A question")
        await run.command("/export")
        assert "An **answer**" in (tmp_path / "a-question.md").read_text()
        await run.command("/export all.json")
        await run.command("/save")
        await run.command("/load a-question.json")
        assert run.contents() == [("user", "A question"), ("assistant", "An **answer**")]
        assert len(run.store.sessions()) == 2
        await run.command("/export all.json")
        await run.command("/load nothing.json")
        assert "all.json" in run.notes() and "nothing.json" in run.notes()


@in_loop
async def test_a_full_context_asks_what_to_leave_out(tmp_path: Path) -> None:
    async with running(tmp_path, "y" * 100, ctx_size=880, size=(100, 40)) as run:
        await run.talk("q1 " + "x" * 200)
        await run.talk("q2 " + "x" * 200)
        await run.until(lambda: "The context is" in run.notes())
        assert "⚠" in run.app.status.text
        await run.send("q3 " + "x" * 200)
        await run.until(lambda: isinstance(run.app.screen, Choice))
        assert "Leave out the oldest 2 messages" in run.screen_text()
        await run.pilot.press("enter")
        view = await run.replied()
        assert view.message.state is MessageState.COMPLETE
        asked = bytes(t for t in run.engine.requests[-1].tokens if t < 256).decode()
        assert "q1" not in asked and "q2" in asked and "q3" in asked
        assert "earlier messages are not sent" in "\n".join(
            str(w.render()) for w in run.app.conversation.query(".divider")
        )
        assert len(run.app.path) == 6, "nothing is deleted"


@in_loop
async def test_leaving_the_context_alone_keeps_the_question(tmp_path: Path) -> None:
    async with running(tmp_path, ctx_size=300) as run:
        await run.ready()
        await run.send("x" * 400)
        await run.until(lambda: isinstance(run.app.screen, Choice))
        await run.pilot.press("escape")
        view = await run.replied()
        assert view.message.state is MessageState.STOPPED and run.app.path[0].content == "x" * 400


@in_loop
async def test_a_death_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path, "word " * 60, delay=0.05) as run:
        await run.ready()
        await run.app.ask("Go")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 10)
        run.worker.die()
        view = await run.replied()
        assert view.message.state is MessageState.ERROR and view.message.content.startswith("word")
        await run.until(lambda: run.app.query_one(Banner).shown)
        await run.until(lambda: "The conversation is saved" in run.screen_text())
        assert "SIGKILL" in run.screen_text()
        await run.pilot.press("f6")
        await run.ready()
        assert run.worker.loads[-1][1]["backend"] == "numpy"
        assert not run.app.query_one(Banner).shown
        run.engine.delay = 0.0
        view = await run.talk("Again")
        assert view.message.state is MessageState.COMPLETE


@in_loop
async def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    def broken(worker: object) -> None:
        worker.load_error = DeviceError("no \x1b[2Jcard")  # type: ignore[attr-defined]

    async with running(tmp_path, prepare=broken) as run:
        await run.until(lambda: run.app.query_one(Banner).shown)
        await run.until(lambda: "could not be loaded: no [2Jcard" in run.screen_text())
        await run.send("Hi")
        view = await run.replied()
        assert view.message.state is MessageState.ERROR
        run.worker.load_error = None
        await run.pilot.press("f5")
        await run.ready()
        await run.pilot.press("ctrl+r")
        await run.until(lambda: run.worker.engine and run.engine.requests)
        assert (await run.replied()).message.content == "Hello there!"


@in_loop
async def test_quitting_in_the_middle_keeps_what_there_is(tmp_path: Path) -> None:
    async with running(tmp_path, "word " * 2000, delay=0.005) as run:
        await run.ready()
        await run.app.ask("Go")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 10)
        session = run.app.session
        assert session is not None
        await run.pilot.press("ctrl+q")
    async with running(tmp_path, start=Start(model=str(tmp_path / "fake.gguf"), resume=session.id)) as run:
        assert run.app.path[-1].state is MessageState.INTERRUPTED
        assert run.app.path[-1].content.startswith("word")


@in_loop
async def test_prefill_and_speed_are_told(tmp_path: Path) -> None:
    def slowly(worker: object) -> None:
        worker.prefill_steps = 1  # type: ignore[attr-defined]

    async with running(tmp_path, "word " * 40, delay=0.01, prepare=slowly, size=(120, 24)) as run:
        await run.ready()
        seen = set()
        await run.send("Go " * 50)

        def watch() -> bool:
            seen.add(run.app.status.figures.doing.split(" ")[-1])
            return run.app.reply is None

        await run.until(watch)
        assert "tok/s" in seen
        assert "context" in run.app.status.text and "numpy" in run.app.status.text
