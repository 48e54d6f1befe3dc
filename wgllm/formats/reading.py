"""Files that stay open and are read where they are needed, for a process that must outlive a change of its model.

A process that reads from a mapped file what has been cut off meanwhile is ended by the system (SIGBUS); here that is a
ModelFileError. It costs a copy of what is read.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import ModelFileChanged
from wgllm.formats.mapping import map_opened, open_file, reading_errors
from wgllm.formats.views import DerivedView
from wgllm.quant import QuantFormat


class ReadFile:
    """An open file, read by any number of threads. What takes its name later changes nothing of it."""

    def __init__(self, path: Path, kind: str) -> None:
        """``kind`` is what it should be, for messages. Raises ModelNotFoundError, ModelFileError."""
        self.path = path
        self._file = open_file(path, kind)
        # Whoever forgets to close it holds it no longer than its tensors.
        self._close = weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.stamp = self._look()
        """Its size and when it was written to last (ns), as it was opened."""

    def map(self) -> mmap.mmap:
        """The file mapped, for as long as its header is read."""
        return map_opened(self._file, self.path)

    def check(self) -> None:
        """Raises ModelFileChanged when the file was written to, ModelFileError when it can't be read any more."""
        if self._look() != self.stamp:
            raise ModelFileChanged(self.path)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes ``start:stop``, read-only. Raises as ``check`` does, whose look comes after the reading: a file
        that is written to during it is found out."""
        data = np.empty(stop - start, np.uint8)
        rest = data.data
        with reading_errors(self.path), self._lock:
            self._file.seek(start)
            while rest and (count := self._file.readinto(rest)):
                rest = rest[count:]
        self.check()
        if rest:
            raise ModelFileChanged(self.path)
        data.flags.writeable = False
        return data

    def close(self) -> None:
        with self._lock:
            self._close()

    def _look(self) -> tuple[int, int]:
        with reading_errors(self.path):
            info = os.fstat(self._file.fileno())
        return info.st_size, info.st_mtime_ns


class ReadView(DerivedView):
    """A tensor that is read from its file at each use; the whole of it is kept until ``forget``, for views that look
    at all of it for each of their pieces."""

    costly = False

    def __init__(
        self, name: str, shape: tuple[int, ...], format: QuantFormat, file: ReadFile, start: int
    ) -> None:
        """It begins at byte ``start``."""
        super().__init__(name, shape, format, ())
        whole: list[NDArray[np.uint8]] = []
        for field, value in (("_file", file), ("_start", start), ("_whole", whole), ("forget", whole.clear)):
            object.__setattr__(self, field, value)

    _file: ReadFile
    _start: int
    _whole: list[NDArray[np.uint8]]

    @property
    def data(self) -> NDArray[np.uint8]:
        found = self._whole[:1]  # another thread may forget it at any time
        if not found:
            found = [self.blocks(0, self.n_blocks).reshape(-1)]
            self._whole[:] = found
        return found[0]

    def blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        size = self.format.type_size
        data = self._file.read(self._start + start * size, self._start + stop * size)
        return data.reshape(-1, size)


def close_files(files: Iterable[ReadFile]) -> None:
    for file in files:
        file.close()
