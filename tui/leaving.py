"""How the application ends when a signal says so or its terminal goes away: as by Ctrl+Q, else by force."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

HUNG_UP = 129
"""The exit code after SIGHUP, which a terminal that goes away sends unless the process is in another session."""
PATIENCE = 6.0
"""Seconds for an orderly end; closing the model's process takes 4 of them at most."""
_SAVING_SECONDS = 2.0
# Out of any unfinished sequence; the modes that Textual sets, the other way round: pastes marked, lines not wrapped,
# keys told in full, the mouse and the focus told, the second screen, no cursor.
_SANE = b"\x18\x1b[?2004l\x1b[?7h\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?1004l\x1b[<u\x1b[?1049l\x1b[?25h"


class Leaves(Protocol):
    """What can be left: from any thread, and more than once."""

    def leave(self, code: int) -> None: ...


class Leaving:
    """While it is entered, SIGTERM, SIGHUP and a terminal that hangs up make ``app`` leave.

    A terminal that takes no more text (a stopped one, a connection that was lost) holds up whoever writes to it, and
    the application's loop with it. So a second thread waits for the end; when it doesn't come in ``PATIENCE`` seconds,
    it calls ``save``, sets the terminal right as far as that goes, and ends the process.
    """

    def __init__(self, app: Leaves, save: Callable[[], object]) -> None:
        self._app, self._save = app, save
        self._previous: dict[int, Any] = {}
        self._code: int | None = None
        self._left = threading.Event()
        self._terminal = _modes()

    def __enter__(self) -> Leaving:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) not in (
                signal.SIG_IGN,
                None,
            ):  # nohup ignores it
                self._previous[number] = signal.signal(number, self._signalled)
        if hasattr(select, "poll"):
            threading.Thread(target=self._watch, name="terminal", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._leave(128 + number)

    def _watch(self) -> None:
        """Waits for the terminal's end, which is told without being asked for."""
        poll = select.poll()
        with contextlib.suppress(OSError, ValueError):
            poll.register(sys.__stdin__.fileno() if sys.__stdin__ else 0, 0)
            if any(what & select.POLLHUP for _, what in poll.poll()) and not self._left.is_set():
                self._leave(HUNG_UP)

    def _leave(self, code: int) -> None:
        if self._code is None:
            self._code = code
            threading.Thread(target=self._end, name="leaving", daemon=True).start()
            self._app.leave(code)

    def _end(self) -> None:
        if self._left.wait(PATIENCE):
            return
        saving = threading.Thread(target=self._save, daemon=True)
        saving.start()
        saving.join(_SAVING_SECONDS)
        _restore(self._terminal)
        os._exit(self._code or 0)


def _modes() -> list[Any] | None:
    try:
        import termios

        return termios.tcgetattr(0)
    except Exception:  # Windows, or no terminal
        return None


def _restore(modes: list[Any] | None) -> None:
    with contextlib.suppress(Exception):
        import termios

        # Opened anew, so that not waiting for it is nobody else's setting.
        fd = os.open(os.ttyname(0), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        if modes is not None:
            termios.tcsetattr(fd, termios.TCSANOW, modes)
        os.write(fd, _SANE)
