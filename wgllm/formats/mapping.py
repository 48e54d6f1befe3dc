"""Files mapped into memory, read-only: what every format reader begins with."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from wgllm.errors import ModelFileError, ModelNotFoundError


def map_file(path: Path, kind: str) -> mmap.mmap:
    """The file, mapped read-only. ``kind`` is what it should be (``a GGUF file``), for messages.

    Raises ModelNotFoundError when there is none, ModelFileError when it is no regular file, empty or not readable.
    """
    with open_file(path, kind) as file:
        return map_opened(file, path)


def open_file(path: Path, kind: str) -> FileIO:
    """The file, opened to be read. Raises what ``map_file`` does."""
    with reading_errors(path):
        # Opening a FIFO would wait for a writer, so look first.
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ModelFileError(path, "file", f"is a directory, not {kind}")
        if not stat.S_ISREG(info.st_mode):
            raise ModelFileError(path, "file", "is not a regular file")
        return path.open("rb", buffering=0)


def map_opened(file: FileIO, path: Path) -> mmap.mmap:
    """An opened file, mapped read-only; ``path`` is for messages. Raises ModelFileError."""
    with reading_errors(path):
        if not os.fstat(file.fileno()).st_size:
            raise ModelFileError(path, "file", "the file is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@contextlib.contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Makes ModelFileErrors of what the system says when a file is opened or read, ModelNotFoundError where it is
    not there."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"no model file at {str(path)!r}") from None
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelFileError(path, "file", f"cannot be read: {reason}") from None


def forget(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Takes the pages that lie between two places out of memory, where the system lets us."""
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = stop // mmap.PAGESIZE * mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED") and start < stop and not mapped.closed:
        with contextlib.suppress(OSError):
            mapped.madvise(mmap.MADV_DONTNEED, start, stop - start)


def close_maps(maps: Iterable[mmap.mmap]) -> None:
    for mapped in maps:
        # Arrays that somebody still holds keep their map alive; it goes when the last of them does.
        with contextlib.suppress(BufferError):
            mapped.close()
