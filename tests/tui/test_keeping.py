"""What is typed is not lost: edits, pastes, keys that were meant for the prompt; and replies of other windows."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key, Paste
from textual.widgets._toast import Toast

from tests.tui.running import in_loop, running
from wgllm.errors import SessionStoreError
from wgllm.sessions import SessionStore
from wgllm.sessions_types import MessageState
from wgllm.tui.dialogs import Help
from wgllm.tui.replies import Replies

PASTED = "a pasted line\n" * 61


@in_loop
async def test_an_edit_waits_in_its_conversation(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.talk("first")
        first = run.app.session
        assert first is not None
        await run.pilot.press("ctrl+e")
        await run.until(lambda: run.app.editing is not None)
        await run.pilot.press("!")
        edited = run.app.editing
        await run.pilot.press("ctrl+n")
        await run.until(lambda: run.app.session is None and run.app.opened)
        assert run.app.editing is None and run.app.prompt_bar.prompt.text == ""
        await run.talk("second")
        await run.pilot.press("ctrl+e")
        await run.until(lambda: run.app.editing is not None)
        await run.pilot.press("?")
        await run.app.open_session(first.id)
        assert run.app.editing == edited and run.app.prompt_bar.prompt.text == "first!"
        # Also where a branch is shown that the message is not in, and where nothing can be opened.
        run.store.edit(run.app.path[0].id, "beside")
        await run.app.open_session(12345)
        assert run.app.editing == edited and run.app.prompt_bar.prompt.text == "first!"
    async with running(tmp_path) as run:
        await run.app.open_session(first.id)
        assert run.app.editing == edited and run.app.prompt_bar.prompt.text == "first!"
        await run.pilot.press("escape")
        await run.until(lambda: run.app.editing is None)
        run.app.keep_place()
        await run.app.open_session(None)
        await run.app.open_session(first.id)
        assert run.app.editing is None


@pytest.mark.parametrize("draft", ["", "a draft"])
def test_up_brings_a_dropped_edit_back(tmp_path: Path, draft: str) -> None:
    @in_loop
    async def check() -> None:
        async with running(tmp_path) as run:
            await run.talk("first")
            await run.type(draft)
            await run.pilot.press("ctrl+e")
            await run.until(lambda: run.app.editing is not None)
            await run.pilot.press("!", "escape")
            prompt = run.app.prompt_bar.prompt
            await run.until(lambda: run.app.editing is None and prompt.text == draft)
            await run.pilot.press("up")
            assert prompt.text == "first!"
            await run.pilot.press("down")
            assert prompt.text == draft

    check()


@in_loop
async def test_an_edit_that_cannot_be_saved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as run:
        await run.talk("first")

        def full(*_: Any) -> None:
            raise SessionStoreError(run.store.file, "the disk is full")

        await run.pilot.press("ctrl+e")
        await run.until(lambda: run.app.editing is not None)
        edited = run.app.editing
        with monkeypatch.context() as patch:
            patch.setattr(run.store, "edit", full)
            await run.pilot.press("!", "enter")
            await run.until(lambda: "the disk is full" in run.notes())
        assert run.app.editing == edited and run.app.prompt_bar.prompt.text == "first!"
        await run.pilot.press("enter")
        await run.replied()
        assert run.app.path[0].content == "first!" and run.app.path[0].n_siblings == 2


@in_loop
async def test_the_word_of_a_paste_is_one_character(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.ready()
        prompt = run.app.prompt_bar.prompt
        await run.pilot.press("a")
        prompt.post_message(Paste(PASTED))
        await run.until(lambda: "pasted" in prompt.text)
        word = "[pasted text 1: 61 lines]"
        await run.pilot.press("b")
        assert prompt.text == f"a{word}b"
        await run.pilot.press("left", "left")
        assert prompt.cursor_location == (0, 1)
        await run.pilot.press("right")
        assert prompt.cursor_location == (0, 1 + len(word))
        await run.pilot.press("ctrl+left")
        assert prompt.cursor_location == (0, 1)
        prompt.move_cursor(prompt.document.end)
        prompt.move_cursor((0, 5))
        await run.pilot.press("x")
        assert prompt.full_text == f"ax{PASTED}b"
        prompt.insert("y", (0, 9))
        assert prompt.full_text == f"ax{PASTED}yb"
        for keys in (("left", "backspace"), ("left", "left", "delete")):
            prompt.take("")
            prompt.post_message(Paste(PASTED))
            await run.until(lambda: "pasted" in prompt.text)
            await run.pilot.press("b", *keys)
            assert prompt.text == "b", keys
            await run.pilot.press("ctrl+z")
            assert prompt.full_text == f"{PASTED}b"
        prompt.take("[pasted text 7: 3 lines]")
        await run.pilot.press("backspace")
        assert prompt.text == "[pasted text 7: 3 lines"  # typed by hand, it stands for nothing


@in_loop
async def test_typing_at_a_message_goes_into_the_prompt(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        view = await run.talk("Hi")
        prompt = run.app.prompt_bar.prompt
        view.focus()
        await run.until(lambda: view.has_focus)
        # As one burst, all of which the message gets.
        for key in ("slash", "r", "e", "g", "e", "x", "backspace"):
            view.post_message(Key(key, {"slash": "/", "backspace": "\x08"}.get(key, key)))
        await run.until(lambda: prompt.text == "/rege")
        assert prompt.has_focus and run.app.path[-1].n_siblings == 1 and run.app.reply is None
        prompt.take("")
        view.focus()
        await run.until(lambda: view.has_focus)
        await run.pilot.press("at")
        await run.until(lambda: prompt.text == "@")
        view.focus()
        await run.until(lambda: view.has_focus)
        view.post_message(Paste("pasted"))
        await run.until(lambda: prompt.text == "@pasted" and prompt.has_focus)
        view.focus()
        await run.until(lambda: view.has_focus)
        await run.pilot.press("r")
        await run.until(lambda: run.app.path[-1].n_siblings == 2)
        assert prompt.text == "@pasted"


@in_loop
async def test_after_a_screen_one_types(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        view = await run.talk("Hi")
        view.focus()
        await run.until(lambda: view.has_focus)
        await run.pilot.press("f1")
        await run.until(lambda: isinstance(run.app.screen, Help))
        await run.pilot.press("escape")
        await run.until(lambda: run.app.prompt_bar.prompt.has_focus)


@in_loop
async def test_the_branch_is_the_replys_own(tmp_path: Path) -> None:
    async with running(tmp_path, prepare=lambda worker: worker.hold.clear()) as run:
        await run.send("mine")
        await run.until(lambda: run.app.reply is not None and run.app.client is not None)
        assert run.app.session is not None and run.app.reply is not None
        with SessionStore.open(run.store.file) as other:
            other.edit(other.path(run.app.session.id)[0].id, "of another window")
        run.worker.hold.set()
        await run.ready()
        await run.until(lambda: run.app.reply is None)
        asked = bytes(t for t in run.engine.requests[0].tokens if t < 256).decode(errors="replace")
        assert "mine" in asked and "another window" not in asked


@in_loop
async def test_another_windows_reply(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "chats.db") as other:
        session = other.new_session()
        other.append(session.id, "user", "Hi")
        reply = other.begin_reply(session.id)
        other.update_reply(reply.id, "Half")
        other.flush()
        async with running(tmp_path) as run:
            await run.app.open_session(session.id)
            await run.until(lambda: "Half" in run.screen_text())
            await run.until(lambda: "being written by another window" in run.screen_text())
            other.update_reply(reply.id, "Half of it")
            other.flush()
            await run.until(lambda: "Half of it" in run.screen_text())
            assert run.store.message(reply.id).state is MessageState.PARTIAL
            other.finish_reply(reply.id, "Half of it, and all.")
            await run.until(lambda: "and all." in run.screen_text())
            await run.until(lambda: "another window" not in run.screen_text())


@in_loop
async def test_a_dead_windows_reply(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        session = run.store.new_session()
        question = run.store.append(session.id, "user", "Hi")
        with sqlite3.connect(run.store.file) as rows:  # as a process leaves it that is killed
            rows.execute(
                "INSERT INTO messages(session, parent, sibling, role, state, owner, model, created, content)"
                " VALUES (?, ?, 0, 'assistant', 'partial', 'dead', '', 0, 'Half')",
                (session.id, question.id),
            )
            rows.execute("UPDATE sessions SET leaf = (SELECT max(id) FROM messages)")
        rows.close()
        await run.app.open_session(session.id)
        await run.until(lambda: "interrupted: the program ended" in run.screen_text())


@in_loop
async def test_a_reply_stopped_before_it_began(tmp_path: Path) -> None:
    async with running(tmp_path, "Hello there!") as run:
        await run.talk("Hi")
        used = run.app.status.figures.used
        run.worker.hold.clear()
        run.app.start_loading()
        await run.send("Again")
        await run.until(lambda: run.app.reply is not None)
        await run.pilot.press("escape")
        view = await run.replied()
        assert view.message.state is MessageState.STOPPED
        await run.until(lambda: "stopped before it began — r asks again" in run.screen_text())
        run.worker.hold.set()
        await run.ready()
        await run.until(lambda: run.app.status.figures.used > used, "the context is counted")
        view.focus()
        await run.until(lambda: view.has_focus)
        await run.pilot.press("r")
        await run.until(lambda: run.app.path[-1].state is MessageState.COMPLETE)
        await run.until(lambda: "Hello there!" in run.views[-1].copied_text() and not run.views[-1].streaming)
        assert run.app.path[-1].n_siblings == 1 and run.app.path[-1].id == view.message.id
        # One that something was said after stays as it is: its branch would read differently.
        await run.command("/regen")
        await run.until(lambda: run.app.path[-1].n_siblings == 2)


@in_loop
async def test_stopping_while_the_prompt_is_read(tmp_path: Path) -> None:
    async with running(tmp_path, "word " * 1000, delay=0.05) as run:
        await run.ready()
        await run.app.ask("Hi")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 2)
        await run.pilot.press("escape")
        await run.replied()
        used = run.app.status.figures.used
        await run.app.ask("Again")
        run.app.stop()  # before the engine has made a token
        await run.until(lambda: run.app.reply is None)
        await run.until(lambda: run.app.status.figures.used > used)


@pytest.mark.parametrize("width", [40, 80])
def test_what_is_told_covers_no_prompt(tmp_path: Path, width: int) -> None:
    @in_loop
    async def check() -> None:
        async with running(tmp_path, size=(width, 20)) as run:
            await run.ready()
            run.app.tell("the first")
            run.app.tell("what is wrong " * 20, error=True)
            run.app.tell("the second")
            await run.until(
                lambda: "the second" in run.screen_text() and "the first" not in run.screen_text()
            )

            def shown() -> list[Toast]:
                return list(run.app.screen.query(Toast))

            await run.until(lambda: len(shown()) == 2 and all(t.region.height for t in shown()))
            prompt = run.app.prompt_bar.region
            for toast in shown():
                assert toast.region.bottom <= prompt.y and toast.region.right == width
                assert width > 40 or toast.region.height <= 2
            await run.pilot.press("escape")
            await run.until(lambda: not run.app.screen.query(Toast))
            await run.send("/nonsense")
            await run.until(lambda: "no command" in run.screen_text().replace("\n", " "))

    check()


@in_loop
async def test_replies_are_told_as_what_they_were_made_of(tmp_path: Path) -> None:
    async with running(tmp_path, "word " * 1000, delay=0.05) as run:
        await run.ready()
        await run.app.ask("Hi")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 3)
        await run.pilot.press("escape")
        view = await run.replied()
        told = run.app.sent_messages()
        assert bytes(told[-1]["token_ids"]).decode() == view.message.content == told[-1]["content"]
        other = view.message._replace(model="another model")
        assert "token_ids" not in run.app.sent_messages([run.app.path[0], other])[-1]


@in_loop
async def test_a_question_whose_files_are_being_read_goes_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    async with running(tmp_path) as run:
        await run.talk("Hi")
        before, read = len(run.app.path), Replies._with_files
        monkeypatch.setattr(Replies, "_with_files", staticmethod(lambda text: held.wait(60) and read(text)))
        asking = asyncio.create_task(run.app.ask("And?"))
        await asyncio.sleep(0)
        first = run.app.session
        await run.app.open_session(None)
        held.set()
        assert not await asking
        assert "has begun meanwhile" in run.notes() and run.app.session is None
        assert first is not None and len(run.store.path(first.id)) == before
