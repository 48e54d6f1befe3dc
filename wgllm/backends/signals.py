"""Putting a Ctrl-C off for a moment: wgpu-native ends a process in which a request and its answer are at odds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

_NUMBERS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGBREAK")
    if hasattr(signal, name)
]
# Who sends so many signals during one block wants out of a wait that may never end.
_IMPATIENT = 5

_Handler = Callable[[int, FrameType | None], object]
_handlers: dict[int, _Handler] = {}
"""Whose place ``_dispatch`` has taken."""
_depth = 0
_come: list[tuple[int, FrameType | None]] = []


class SignalsHeld:
    """A block in which handlers of signals that are written in Python do not run; they run at its end, and may raise.

    Only the main thread runs such handlers, so that in others nothing is to be done. A handler may raise between any
    two lines here: what counts is that no block is open without its end, and that ``_dispatch`` does the right thing
    whenever it is called.
    """

    def __init__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()

    @property
    def pending(self) -> bool:
        """Whether one waits for this block's end, which should come soon; not for that of a block around it."""
        return self._main and bool(_come) and _depth == 1

    def heed_impatience(self) -> None:
        """To be called between two looks at what may never come: lets the last of many signals through, which raises
        as a rule. What that leaves behind has to be mended later."""
        if self._main and len(_come) >= _IMPATIENT:
            number, frame = _come[-1]
            _come.clear()
            _handlers[number](number, frame)

    def __enter__(self) -> SignalsHeld:
        global _depth
        if self._main:
            if not _depth:
                _come.clear()  # of a block whose end another signal has cut short, by raising
                for number in _NUMBERS:
                    handler = signal.getsignal(number)
                    if callable(handler) and handler is not _dispatch:
                        _handlers[number] = handler
                        signal.signal(number, _dispatch)
            _depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _depth
        if not self._main:
            return
        _depth -= 1
        if not _depth:
            for number, handler in _handlers.items():
                if signal.getsignal(number) is _dispatch:
                    signal.signal(number, handler)
            while _come:
                number, frame = _come.pop(0)
                _handlers[number](number, frame)


def _dispatch(number: int, frame: FrameType | None) -> None:
    if _depth:
        _come.append((number, frame))
    else:
        _handlers[number](number, frame)
