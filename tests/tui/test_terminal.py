"""The whole command in a pseudo terminal: signals, a terminal that goes away, and kills at random moments."""

from __future__ import annotations

import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import kill_chat
from tests.tui.terminal import Terminal, chat, gone
from wgllm.sessions import SessionStore
from wgllm.sessions_types import Message, MessageState
from wgllm.tui import leaving

pytest.importorskip("pty", reason="Windows has no pseudo terminals")

LONG = {"replies": ["word " * 4000], "delay": 0.002}
_MODE = re.compile(rb"\x1b\[\?(\d+)([hl])")


def talking(folder: Path, plan: dict[str, Any]) -> Terminal:
    """In the middle of a reply, with a draft."""
    folder.mkdir()
    (folder / "fake.gguf").touch()
    terminal = chat(plan, "--db", str(folder / "chats.db"), "-m", str(folder / "fake.gguf"))
    terminal.until_told("shown")
    terminal.press("A question\r")
    terminal.until_told("text", 3)
    terminal.press("half a tho")
    terminal.until(
        lambda: any(line[1] == "typed" and line[3] == "half a tho" for line in terminal.told), "the draft"
    )
    return terminal


def kept(folder: Path) -> tuple[str, list[Message]]:
    """The draft and the messages that are there at the next start."""
    with SessionStore.open(folder / "chats.db") as store:
        session = store.session(store.kept.get("session"))
        return session.draft, store.path(session.id)


def assert_kept(folder: Path) -> None:
    draft, path = kept(folder)
    assert draft == "half a tho"
    assert [m.content for m in path[:1]] == ["A question"]
    assert path[1].state is MessageState.INTERRUPTED and path[1].content.startswith("word")


def assert_sane(terminal: Terminal) -> None:
    """The modes of the terminal are those from before; what was switched on was switched off after it."""
    assert terminal.modes() == terminal.modes_before
    switched = dict(_MODE.findall(terminal.written))
    for mode in (b"1049", b"1000", b"1003", b"1006", b"1004", b"2004"):
        assert switched[mode] == b"l", mode
    assert switched[b"25"] == b"h" and switched[b"7"] == b"h"
    assert terminal.written.count(b"\x1b[<u") >= 1, "the keyboard's protocol"
    after = bytes(terminal.written).rsplit(b"\x1b[?1049l", 1)[1]
    assert not re.sub(rb"\x1b\[[?<]?\d*[a-z]", b"", after), "nothing is written on the first screen"


def test_signals_leave_the_terminal_as_it_was(tmp_path: Path) -> None:
    def end(name: str) -> None:
        with talking(tmp_path / name, LONG) as terminal:
            number = getattr(signal, name)
            terminal.kill(number)
            assert terminal.wait() == 128 + number
            assert_sane(terminal)
            assert gone(terminal.until_told("worker")[2])
            assert_kept(tmp_path / name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(end, ("SIGTERM", "SIGHUP")))


def test_a_terminal_that_goes_away_leaves_no_process(tmp_path: Path) -> None:
    """Also where that sends no signal, as in a session of another terminal."""

    def end(controlling: bool) -> None:
        folder = tmp_path / str(controlling)
        # Textual may wait for ever for the thread that wrote to the terminal: the program ends all the same.
        plan = {**LONG, "controlling": controlling, "patience": leaving.PATIENCE}
        with talking(folder, plan) as terminal:
            child = terminal.until_told("worker")[2]
            terminal.hang_up()
            assert terminal.process.wait(60) == leaving.HUNG_UP
            assert gone(child)
            assert_kept(folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(end, (True, False)))


def test_a_terminal_that_takes_nothing_cannot_hold_it(tmp_path: Path) -> None:
    """As when a connection stalls: the application's loop waits for the terminal, and SIGTERM ends it all the same."""
    with talking(tmp_path / "stalled", {**LONG, "patience": 0.3}) as terminal:
        child = terminal.until_told("worker")[2]
        terminal.until(lambda: ["half a tho"] in [line[3:] for line in terminal.told if line[1] == "kept"])
        terminal.stop_reading()
        terminal.until(terminal.stalled, "the full terminal")
        terminal.kill(signal.SIGTERM)
        assert terminal.process.wait(60) == 128 + signal.SIGTERM
        assert terminal.modes() == terminal.modes_before
        assert gone(child)
        assert_kept(tmp_path / "stalled")


def test_a_signal_before_the_first_picture_forgets_nothing(tmp_path: Path) -> None:
    with talking(tmp_path / "a", LONG) as terminal:
        terminal.kill(signal.SIGTERM)
        terminal.wait()
    folder = tmp_path / "a"
    with chat(LONG, "-r", "--db", str(folder / "chats.db"), "-m", str(folder / "fake.gguf")) as terminal:
        terminal.until_told("started")
        terminal.until(lambda: b"\x1b[?1049h" in terminal.written, "the second screen")
        terminal.kill(signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
        assert_sane(terminal)
    assert_kept(folder)


def test_the_draft_of_a_new_conversation_is_there_again(tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").touch()
    arguments = ("--db", str(tmp_path / "chats.db"), "-m", str(tmp_path / "fake.gguf"))
    with chat({}, *arguments) as terminal:
        terminal.until_told("shown")
        terminal.press("half a tho")
        terminal.until_told("typed")
        terminal.until(lambda: terminal.told[-1][3:] == ["half a tho"], "the draft")
        terminal.press("\x11")
        assert terminal.wait() == 0
        assert_sane(terminal)
    with chat({}, *arguments) as terminal:
        assert terminal.until_told("shown")[2:4] == [None, "half a tho"]


def test_killed_at_random_moments(tmp_path: Path) -> None:
    found = kill_chat.run(20, tmp_path, seed=1, longest=0.7, patient=True)
    assert found.kills == 20 and found.saved > 5 and found.in_replies > 0
    assert not found.faults, found.faults
