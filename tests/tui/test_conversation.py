"""Asking and answering: rendered while it streams, stopped, failed, kept, and there again after a restart."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Static

from tests.tui.running import in_loop, running, text_of
from wgllm.errors import WgllmError
from wgllm.sessions_types import MessageState
from wgllm.tui.base import Start
from wgllm.tui.conversation import WINDOW
from wgllm.tui.markdown import CodeFence
from wgllm.tui.message import Fold

CODE = "# Adding\n\nSo:\n\n```python\ndef add(a, b):\n    return a + b\n```\n\nThat is *all*."


@in_loop
async def test_ask_answer_and_keep(tmp_path: Path) -> None:
    async with running(tmp_path, "Hello **there**!", size=(120, 24)) as run:
        view = await run.talk("Hi")
        assert run.contents() == [("user", "Hi"), ("assistant", "Hello **there**!")]
        assert "Hello there!" in run.screen_text()
        assert view.message.state is MessageState.COMPLETE and view.message.stats is not None
        assert run.app.prompt_bar.prompt.text == ""
        assert "context" in run.app.status.text
        await run.type("half a tho")
        resume = run.app.session
        assert resume is not None
    async with running(tmp_path, start=Start(model=str(tmp_path / "fake.gguf"), resume=resume.id)) as run:
        assert run.contents() == [("user", "Hi"), ("assistant", "Hello **there**!")]
        assert run.app.prompt_bar.prompt.text == "half a tho"
        await run.until(lambda: "Hello there!" in run.screen_text())


@in_loop
async def test_markdown_and_code(tmp_path: Path) -> None:
    async with running(tmp_path, CODE, size=(80, 40)) as run:
        view = await run.talk("How?")
        assert len(view.query("MarkdownH1")) == 1
        fence = view.query_one(CodeFence)
        assert fence.code == "def add(a, b):\n    return a + b" and fence.lexer == "python"
        content = fence.query_one("#code-content", Static).render()
        assert content.spans, "highlighted"  # type: ignore[attr-defined]
        await run.pilot.click(".code-bar")
        await run.until(lambda: run.app.clipboard == fence.code)
        run.app.copy_to_clipboard("")
        await run.pilot.press("ctrl+o")
        await run.until(lambda: run.app.clipboard == fence.code)
        run.app.copy_to_clipboard("")
        fence.focus()
        await run.pilot.press("c")
        await run.until(lambda: run.app.clipboard == fence.code)


@in_loop
async def test_streams_into_fences_that_come_in_pieces(tmp_path: Path) -> None:
    async with running(tmp_path, CODE, delay=0.015, size=(80, 40)) as run:
        await run.ready()
        hold = run.hold(CODE.index("    return"))
        await run.app.ask("How?")
        await run.until(lambda: run.views and run.views[-1].query(CodeFence), "code while it streams")
        assert run.app.reply is not None
        hold.set()
        view = await run.replied()
        assert view.query_one(CodeFence).code == "def add(a, b):\n    return a + b"
        assert "That is all." in run.screen_text()


@in_loop
async def test_stop_keeps_the_text(tmp_path: Path) -> None:
    async with running(tmp_path, "word " * 1000, delay=0.02) as run:
        await run.ready()
        await run.app.ask("Go on")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 20)
        await run.pilot.press("escape")
        view = await run.replied()
        assert view.message.state is MessageState.STOPPED
        assert view.message.content.startswith("word word")
        assert "stopped; the text is kept" in run.screen_text()
        assert run.store.path(view.message.session_id)[-1].content == view.message.content


@in_loop
async def test_stop_before_the_model_is_there(tmp_path: Path) -> None:
    async with running(tmp_path, prepare=lambda worker: worker.hold.clear()) as run:
        await run.send("Hi")
        await run.until(lambda: "waiting for the model" in run.screen_text())
        await run.pilot.press("escape")
        view = await run.replied()
        assert view.message.state is MessageState.STOPPED
        await run.until(lambda: run.app.client)
        run.worker.hold.set()
        await run.ready()
        assert run.engine.requests == []


@in_loop
async def test_what_is_sent_while_the_model_loads_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path, "At last.", prepare=lambda worker: worker.hold.clear()) as run:
        await run.send("Hi")
        await run.until(lambda: run.app.client and run.app.reply)
        run.worker.hold.set()
        await run.ready()
        assert (await run.replied()).message.content == "At last."


@in_loop
async def test_errors_stand_in_place(tmp_path: Path) -> None:
    async with running(tmp_path, error=WgllmError("a NaN in \x1b[31mlayer 3 [bold]")) as run:
        view = await run.talk("Hi")
        assert view.message.state is MessageState.ERROR
        assert "a NaN in [31mlayer 3 [bold]" in run.screen_text() and "r tries again" in run.screen_text()
        run.engine.error = None
        view.focus()
        await run.pilot.press("r")
        view = await run.replied()
        assert view.message.content == "Hello there!" and view.message.n_siblings == 2


@in_loop
async def test_reasoning_is_folded(tmp_path: Path) -> None:
    async with running(tmp_path, "<think>\nfirst this\n</think>\n\nSo: that.", size=(80, 30)) as run:
        view = await run.talk("Why?")
        fold = view.query_one(Fold)
        assert "first this" not in run.screen_text() and "Reasoned" in run.screen_text()
        assert "So: that." in run.screen_text()
        view.focus()
        await run.pilot.press("t")
        await run.until(lambda: "first this" in run.screen_text())
        await run.pilot.click(fold.query_one(".fold-title"))
        await run.until(lambda: "first this" not in run.screen_text())
        await run.pilot.press("c")
        await run.until(lambda: run.app.clipboard == "So: that.")


@in_loop
async def test_follows_the_end_unless_scrolled_away(tmp_path: Path) -> None:
    async with running(tmp_path, "a line\n\n" * 120, delay=0.004) as run:
        await run.ready()
        hold = run.hold(400)
        await run.app.ask("Go")
        messages = run.app.conversation.messages
        await run.until(lambda: messages.max_scroll_y > 10 and run.app.conversation.at_end)
        await run.pilot.press("pageup")
        await run.until(lambda: run.app.conversation.query_one("#to-end").display, "the hint")
        before = messages.scroll_offset.y
        height = messages.max_scroll_y
        hold.set()
        await run.until(lambda: messages.max_scroll_y > height, "more text")
        assert messages.scroll_offset.y == before
        await run.pilot.press("ctrl+end")
        await run.until(lambda: run.app.conversation.at_end)
        await run.until(lambda: not run.app.conversation.query_one("#to-end").display, "no hint")
        await run.pilot.press("escape")
        await run.replied()
        await run.until(lambda: run.app.conversation.at_end)


@in_loop
async def test_hostile_text_does_nothing(tmp_path: Path) -> None:
    evil = "a\x1b]52;c;ZXZpbA==\x07b\x1b[2Jc\x9b31m [red]d[/red] \u202ee <b>f</b>\n\n<div>g</div>"
    async with running(tmp_path, evil) as run:
        await run.talk(evil)
        shown = run.screen_text()
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}
        assert "[red]d[/red]" in shown and "<b>f</b>" in shown and "<div>g</div>" in shown
        assert run.app.clipboard == ""


@in_loop
async def test_long_conversations_are_windowed(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        session = run.store.new_session(title="long")
        for number in range(150):
            run.store.append(session.id, "user" if number % 2 == 0 else "assistant", f"message {number}")
        await run.app.open_session(session.id)
        await run.until(lambda: "message 149" in run.screen_text())
        assert len(run.views) == WINDOW
        await run.app.conversation.show_earlier()
        assert len(run.views) == 2 * WINDOW
        first = run.app.path[0].id
        view = await run.app.conversation.reveal(first)
        assert view is not None and len(run.views) == 150
        await run.until(lambda: "message 0" in run.screen_text())


@in_loop
async def test_messages_of_a_page_of_text_are_folded(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.talk("\n".join(f"line {i}" for i in range(500)))
        assert "490 more lines" in text_of(run.views[0].query_one(".fold-title", Static))
