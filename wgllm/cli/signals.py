"""Ctrl-C, and the signals that end a process: seen at once in every phase, the terminal as it was before."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 130


class Terminated(BaseException):
    """SIGTERM or SIGHUP came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Interrupts:
    """Handles signals while it is entered: the first Ctrl-C stops what runs, a second before that ends the process.

    Does nothing outside the main thread, and leaves signals alone that the caller has ignored (nohup).
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._cancel: Callable[[], None] | None = None
        self._count = 0
        self._terminal = _terminal_state()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name, handler in (("SIGINT", self._interrupt), ("SIGTERM", _end), ("SIGHUP", _end)):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._terminal)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def cancelling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Inside, Ctrl-C calls ``cancel`` instead of raising KeyboardInterrupt."""
        self._cancel = cancel
        try:
            yield
        finally:
            self._cancel = None

    @property
    def seen(self) -> bool:
        """Whether Ctrl-C came since the last ``reset``."""
        return self._count > 0

    def reset(self) -> None:
        """What Ctrl-C was to stop has stopped."""
        self._count = 0

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            _restore(self._terminal)
            with contextlib.suppress(OSError):
                os.write(2, b"\n")
            os._exit(INTERRUPTED)
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()


@contextlib.contextmanager
def ending(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGTERM or SIGHUP calls ``stop`` instead of raising, and Terminated is raised in the end.

    For event loops, where an exception that comes anywhere may get lost. A second signal ends the process.
    """
    seen: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        stop()

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        raise Terminated(seen[0])


@contextlib.contextmanager
def nudging() -> Iterator[None]:
    """Inside, a signal that comes right before readline waits for a key is not seen only at the next key.

    Python's handlers run between instructions, so readline must come back from its wait: a moment after each signal
    a thread sends the main thread another one, which does nothing.
    """
    nudge = getattr(signal, "SIGURG", None)  # not on Windows, which has no readline either
    if nudge is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(nudge, lambda number, frame: None)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while data := reader.recv(64):
            if any(number != nudge for number in data):
                time.sleep(0.1)
                signal.pthread_kill(threading.main_thread().ident or 0, nudge)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        writer.close()
        thread.join()
        reader.close()
        signal.signal(nudge, before)


def _end(number: int, frame: FrameType | None) -> None:
    for name in ("SIGTERM", "SIGHUP"):  # the next one finds no patience
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is _end:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    raise Terminated(number)


def _terminal_state() -> list[Any] | None:
    try:
        import termios

        return termios.tcgetattr(sys.stdin.fileno())
    except Exception:  # Windows, or no terminal
        return None


def _restore(state: list[Any] | None) -> None:
    if state is None:
        return
    import termios

    with contextlib.suppress(Exception):
        # A background process that sets the terminal would be stopped.
        if os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, state)
