"""A download on a thread of its own, which tells a screen how far it is and can be stopped."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from textual.message import Message

from wgllm.errors import WgllmError
from wgllm.hub_progress import Progress, size_text

_TELL_SECONDS = 0.1


@dataclass
class DownloadCame(Message):
    """So many bytes are here."""

    download: Download
    done: int
    total: int


@dataclass
class DownloadSaid(Message):
    """A line for the user."""

    download: Download
    text: str


@dataclass
class DownloadEnded(Message):
    """The file is here, or why it is not."""

    download: Download
    path: Path | None
    problem: str


class Download:
    """Runs ``fetch``, to which it is the ``Progress``. ``tell`` must be a screen's or widget's ``post_message``.

    A daemon thread instead of a worker of Textual's, for which the application would wait when it ends: a connection
    that hangs can take a minute to give up, and whatever has come is kept when the process ends.
    """

    def __init__(self, name: str, fetch: Callable[[Progress], Path], tell: Callable[[Message], bool]) -> None:
        self.name = name
        self._fetch = fetch
        self._tell = tell
        self._stopped = threading.Event()
        self._total = 0
        self._told = 0.0

    def begin(self) -> None:
        threading.Thread(target=self._run, name=f"fetch {self.name}", daemon=True).start()

    def stop(self) -> None:
        """Ends it soon; nothing is told any more, and what has come is kept."""
        self._stopped.set()

    def message(self, text: str) -> None:
        self._post(DownloadSaid(self, text))

    def start(self, label: str, total: int, done: int) -> None:
        self._total = total
        self.update(done)

    def update(self, done: int) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt  # as Ctrl-C ends `wgllm pull`
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS or done >= self._total:
            self._told = now
            self._post(DownloadCame(self, done, self._total))

    def finish(self) -> None:
        pass

    def _run(self) -> None:
        try:
            self._post(DownloadEnded(self, self._fetch(self), ""))
        except KeyboardInterrupt:
            pass
        except WgllmError as error:
            self._post(DownloadEnded(self, None, str(error)))
        except Exception as error:  # no fault of a library may end the conversation
            self._post(DownloadEnded(self, None, f"the download failed: {type(error).__name__}: {error}"))

    def _post(self, message: Message) -> None:
        if not self._stopped.is_set():
            with contextlib.suppress(RuntimeError):  # the application has ended meanwhile
                self._tell(message)


class Pace:
    """Speed and time left, of the last seconds."""

    WINDOW = 8.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def line(self, done: int, total: int) -> str:
        """``31 MB of 98.4 MB · 5.2 MB/s · 13 s left``."""
        now = self._clock()
        self._seen.append((now, done))
        while now - self._seen[0][0] > self.WINDOW:
            self._seen.popleft()
        (then, before), parts = self._seen[0], [f"{size_text(done)} of {size_text(total)}"]
        if now - then >= 0.5 and done > before:
            speed = (done - before) / (now - then)
            parts += [f"{size_text(speed)}/s", f"{duration(max(0, total - done) / speed)} left"]
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """``13 s``, ``4 min``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
