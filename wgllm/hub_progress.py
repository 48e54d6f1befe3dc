"""How a download is told: a bar on a terminal, a few lines elsewhere, or the caller's own object."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    import rich.progress


class Progress(Protocol):
    """What a download tells. ``done`` and ``total`` are bytes over all of its parts."""

    def message(self, text: str) -> None:
        """One line for the user."""

    def start(self, label: str, total: int, done: int) -> None: ...

    def update(self, done: int) -> None: ...

    def finish(self) -> None:
        """Always called after ``start``, also when the download failed."""


class SilentProgress:
    """Tells nothing."""

    def message(self, text: str) -> None:
        pass

    def start(self, label: str, total: int, done: int) -> None:
        pass

    def update(self, done: int) -> None:
        pass

    def finish(self) -> None:
        pass


class LineProgress:
    """Plain lines, one for every tenth: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._label = ""
        self._total = 1
        self._tenth = 0

    def message(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def start(self, label: str, total: int, done: int) -> None:
        self._label, self._total = label, total
        self._tenth = 10 * done // total

    def update(self, done: int) -> None:
        tenth = 10 * done // self._total
        if tenth > self._tenth:
            self._tenth = tenth
            self.message(f"{self._label}: {10 * tenth}% of {size_text(self._total)}")

    def finish(self) -> None:
        pass


class BarProgress:
    """A bar with speed and time left, for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def message(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self.stream, flush=True)
        else:
            # Through the bar's console, which prints above the bar instead of into it.
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, label: str, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(file=self.stream),
            expand=True,
        )
        self._task = self._bar.add_task(label, total=total, completed=done)
        self._bar.start()

    def update(self, done: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def animates(stream: TextIO | None) -> bool:
    """Whether lines may be redrawn there: a terminal that knows how to."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def stderr_progress() -> Progress:
    """The default: a bar where standard error is a terminal, lines where it is not, nothing without one."""
    stream = sys.stderr
    if stream is None:  # a Windows program without a console
        return SilentProgress()
    return BarProgress(stream) if animates(stream) else LineProgress(stream)


def size_text(size: float) -> str:
    """``98.4 MB``: decimal units, as package indexes and file managers count."""
    for unit in ("bytes", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 100 else f"{size:.0f} GB"
