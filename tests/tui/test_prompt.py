"""What is typed: lines, recalling, pastes, completion, attached files, commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.events import Paste
from textual.widgets import OptionList, Static

from tests.tui.running import in_loop, running, text_of
from wgllm.errors import UsageError
from wgllm.tui import attachments, commands
from wgllm.tui.actions import Actions
from wgllm.tui.dialogs import command_rows
from wgllm.tui.text import clean, join_attached, split_attached, split_reasoning


@in_loop
async def test_lines_and_growing(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.ready()
        prompt = run.app.prompt_bar.prompt
        assert prompt.has_focus
        height = prompt.outer_size.height
        await run.pilot.press("a", "shift+enter", "b", "ctrl+j", "c")
        assert prompt.text == "a\nb\nc"
        await run.until(lambda: prompt.outer_size.height == height + 2)
        await run.pilot.press("enter")
        await run.until(lambda: run.app.path)
        assert run.app.path[0].content == "a\nb\nc" and prompt.text == ""


@in_loop
async def test_up_recalls(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.talk("first")
        await run.talk("second")
        prompt = run.app.prompt_bar.prompt
        seen = []
        for key in ("up", "up", "up", "down", "down"):
            await run.pilot.press(key)
            seen.append(prompt.text)
        assert seen == ["second", "first", "first", "second", ""]
    async with running(tmp_path) as run:
        await run.pilot.press("up")
        assert run.app.prompt_bar.prompt.text == "second"


@in_loop
async def test_large_pastes_stay_small(tmp_path: Path) -> None:
    text = "a line of text that was pasted\n" * 40_000
    async with running(tmp_path, ctx_size=4_000_000) as run:
        await run.ready()
        prompt = run.app.prompt_bar.prompt
        await run.pilot.press("x")
        prompt.post_message(Paste(text))
        await run.until(lambda: "pasted" in prompt.text)
        await run.pilot.press("y")
        assert prompt.text == "x[pasted text 1: 40,000 lines]y"
        assert prompt.full_text == f"x{text}y"
        await run.pilot.press("enter")
        await run.until(lambda: run.app.path)
        assert run.app.path[0].content == f"x{text}y"


@in_loop
async def test_pasted_escapes_are_text(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        prompt = run.app.prompt_bar.prompt
        prompt.post_message(Paste("a\x1b[31mb\r\nc"))
        await run.until(lambda: prompt.text)
        assert prompt.text == "a[31mb\nc"


@in_loop
async def test_files_are_shown_before_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("remember the milk\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\xff")
    async with running(tmp_path) as run:
        await run.ready()
        for key in "What is in @no":
            await run.pilot.press("space" if key == " " else "at" if key == "@" else key)
        options = run.app.prompt_bar.query_one("#completions", OptionList)
        await run.until(lambda: options.display)
        await run.pilot.press("tab")
        assert run.app.prompt_bar.prompt.text == "What is in @notes.txt "
        line = run.app.prompt_bar.query_one("#attached", Static)
        await run.until(lambda: "notes.txt · 18 bytes · 18 tokens" in text_of(line))
        await run.pilot.press("enter")
        await run.until(lambda: run.app.path)
        content = run.app.path[0].content
        assert "remember the milk" in content and content.endswith("What is in @notes.txt ")
        await run.replied()
        assert "notes.txt · 1 line" in run.screen_text()
        await run.send("And @picture.png ?")
        await run.until(lambda: "is no text file" in run.notes())
        assert len(run.app.path) == 2 and run.app.prompt_bar.prompt.text


@in_loop
async def test_commands_complete_and_run(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.ready()
        await run.pilot.press("slash", "s", "y")
        options = run.app.prompt_bar.query_one("#completions", OptionList)
        await run.until(lambda: options.display and options.option_count == 1)
        await run.pilot.press("enter")
        assert run.app.prompt_bar.prompt.text == "/system "
        for key in "Be brief.":
            await run.pilot.press("space" if key == " " else "full_stop" if key == "." else key)
        await run.pilot.press("enter")
        await run.until(lambda: run.app.system_prompt == "Be brief.")
        await run.talk("Hi")
        asked = bytes(run.engine.requests[0].tokens[:60]).decode(errors="replace")
        assert "Be brief." in asked
        await run.send("//not a command")
        await run.replied()
        assert run.app.path[2].content == "/not a command"
        await run.send("/nonsense")
        await run.until(lambda: "/nonsense is no command" in run.notes())
        assert run.app.prompt_bar.prompt.text == "/nonsense"


@in_loop
async def test_set_changes_sampling_and_says_what_is_wrong(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.ready()
        await run.command("/set temperature 0.25")
        await run.command("/set max_tokens 3")
        view = await run.talk("Hi")
        assert run.engine.requests[0].sampling.temperature == 0.25
        assert view.message.content == "Hel" and "limit of tokens" in run.screen_text()
        await run.command("/set temperature hot")
        await run.command("/set nonsense 1")
        assert "hot is no number" in run.notes() and "no sampling option 'nonsense'" in run.notes()


def test_every_command_has_a_method() -> None:
    for command in commands.TABLE:
        assert callable(getattr(Actions, command.method)), command.name
        assert any(name.startswith(f"/{command.name}") for name, _ in command_rows())
    assert commands.find("regen") is commands.find("rege")
    assert commands.find("re") is None and commands.find("") is None


def test_attachments(tmp_path: Path) -> None:
    assert attachments.mentions('see @a.txt, @"b c.txt" and x@y.z @a.txt,') == ["a.txt,", "b c.txt"]
    file = tmp_path / "a.txt"
    file.write_text("x ```` y")
    read = attachments.read(f"{file},")
    assert read is not None and read.body == "x ```` y"
    assert attachments.read("someone") is None
    content = join_attached([read, read._replace(name="b")], "and?")
    assert split_attached(content) == ([read, read._replace(name="b")], "and?")
    file.write_bytes(b"x" * (attachments.LARGEST + 1))
    with pytest.raises(UsageError, match="files of up to"):
        attachments.read(str(file))


def test_reasoning_is_cut_off() -> None:
    assert split_reasoning("plain") == (None, "plain", False)
    assert split_reasoning("<thi") == (None, "", True)
    assert split_reasoning("<think>a") == ("a", "", True)
    assert split_reasoning("<think>a</think>\n\nb") == ("a", "b", False)
    assert split_reasoning("a</think>b") == ("a", "b", False)
    assert split_reasoning("<think></think>b") == (None, "b", False)


def test_cleaning() -> None:
    assert clean("a\x1b]0;t\x07b\x9bc\r\nd\te\ud800\u2028f") == "a]0;tbc\nd\te\ufffd\nf"
