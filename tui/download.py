"""Downloads on threads of their own: one can look at how far they are, stop them, and begin them again."""

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
from wgllm.tui.text import clean_line

_WAIT_SECONDS = 0.05
_END_SECONDS = 1.0

FETCHING, STOPPED, FAILED, HERE = "fetching", "stopped", "failed", "here"


@dataclass
class DownloadEnded(Message):
    """The file is here, or why it is not; one that was stopped tells nothing."""

    download: Download


class Download:
    """Runs ``fetch``, to which it is the ``Progress``. ``tell`` must be an application's ``post_message``.

    A daemon thread instead of a worker of Textual's, for which the application would wait when it ends: a connection
    that hangs can take a minute to give up, and whatever has come is kept when the process ends.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[Progress], Path],
        tell: Callable[[Message], object],
        after: Download | None = None,
    ) -> None:
        """``after``: an earlier one of the same model, which was stopped and may not have noticed yet."""
        self.name = name
        self.state = FETCHING
        self.path: Path | None = None
        self.problem = ""
        """Why it failed: one line."""
        self.done = self.total = 0
        """Bytes; 0 before it is known."""
        self.news = ""
        """The last line that it told."""
        self._pace = Pace()
        self._fetch = fetch
        self._tell = tell
        self._after = after
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"fetch {name}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self.state == FETCHING

    def stop(self) -> None:
        """Ends it soon; what has come is kept."""
        self._end(STOPPED)

    def join(self, seconds: float) -> None:
        """Waits until its thread has ended, for some time."""
        self._thread.join(seconds)

    def line(self) -> str:
        """How far it is: bytes, speed and time left."""
        if not self.total:
            return self.news or "asking for it …"
        if self.done >= self.total:
            return f"{size_text(self.total)} are here · checking them …"
        return self._pace.line(self.done, self.total)

    @property
    def share(self) -> str:
        """How far it is in few words."""
        if self.total and self.done >= self.total:
            return "checking"
        return f"{self.done / self.total:.0%}" if self.total else "…"

    # As a Progress, in its thread

    def message(self, text: str) -> None:
        self._check()
        if not text.startswith((" ", "Fetching ")):  # the size, the licence and the place are known
            self.news = clean_line(text, 200)

    def start(self, label: str, total: int, done: int) -> None:
        self.total, self.news = total, ""
        self.update(done)

    def update(self, done: int) -> None:
        self._check()
        self.done = done

    def finish(self) -> None:
        pass

    def _check(self) -> None:
        if self.state == STOPPED:
            raise KeyboardInterrupt  # as Ctrl-C ends `wgllm pull`

    def _run(self) -> None:
        try:
            while self._after is not None and self._after._thread.is_alive():
                self.news = "waiting for the connection that was stopped to end …"
                self._check()
                self._after.join(_WAIT_SECONDS)
            self._after, self.news = None, ""
            self.path = self._fetch(self)
        except KeyboardInterrupt:
            return
        except WgllmError as error:
            self._fail(str(error))
        except Exception as error:  # no fault of a library may end the conversation
            self._fail(f"the download failed: {type(error).__name__}: {error}")
        else:
            self._end(HERE)

    def _fail(self, problem: str) -> None:
        self.problem = clean_line(problem, 600)
        self._end(FAILED)

    def _end(self, state: str) -> None:
        with self._lock:
            if self.state != FETCHING:
                return
            self.state = state
        if state != STOPPED:
            with contextlib.suppress(RuntimeError):  # the application has ended meanwhile
                self._tell(DownloadEnded(self))


class Downloads:
    """One for each model that was asked for; they go on whatever is on the screen."""

    def __init__(
        self, fetch: Callable[[str, Progress], Path], tell: Callable[[Message], object] = lambda message: None
    ) -> None:
        self._fetch = fetch
        self._tell = tell
        self._last: dict[str, Download] = {}

    def running(self, name: str) -> Download | None:
        found = self._last.get(name)
        return found if found is not None and found.running else None

    def all_running(self) -> list[Download]:
        return [download for download in self._last.values() if download.running]

    def begin(self, name: str) -> Download:
        """The model's download: the one that runs, else a new one, which goes on with what has come before."""
        if (found := self.running(name)) is not None:
            return found
        download = Download(
            name, lambda progress: self._fetch(name, progress), self._tell, self._last.get(name)
        )
        self._last[name] = download
        download.begin()
        return download

    def close(self) -> None:
        """Stops all, and gives them a moment to clear up."""
        end = time.monotonic() + _END_SECONDS
        stopped = self.all_running()
        for download in stopped:
            download.stop()
        for download in stopped:
            download.join(max(0.0, end - time.monotonic()))


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
