"""Putting a Ctrl-C off for a moment: wgpu-native ends a process in which a request and its answer are at odds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

_Handler = Callable[[int, FrameType | None], object]
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGBREAK")
# Who sends so many signals during one block wants out at any price.
_IMPATIENT = 3


class SignalsHeld:
    """A block in which handlers of signals that are written in Python do not run; they run at its end, and may raise.

    Only the main thread runs such handlers, so that in others nothing is to be done.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._come: list[tuple[int, FrameType | None]] = []

    @property
    def pending(self) -> bool:
        """Whether one waits for the block's end, which should come soon."""
        return bool(self._come)

    def __enter__(self) -> SignalsHeld:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for number, frame in self._come:
            self._handlers[number](number, frame)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._come.append((number, frame))
        if len(self._come) >= _IMPATIENT:
            self._handlers[number](number, frame)
