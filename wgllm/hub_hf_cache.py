"""The Hugging Face cache, which other programs share: finding files in it, checking them, adding and removing them.

Its layout is documented: ``blobs/<hash>`` holds a file's bytes (SHA-256, or git's SHA-1 of small files),
``snapshots/<commit>/<name>`` links to them,
``refs/main`` names the commit that the branch is at. What is on its way is ``blobs/<sha256>.incomplete``, which
huggingface_hub of some versions goes on with as well; its lock is theirs. (We fetch by ourselves, since other versions
of it throw away what has come when a download breaks.)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from wgllm.errors import DownloadError, printable
from wgllm.hub_cache import CHUNK, SPARE_BYTES, cache_folder, size_of
from wgllm.hub_lock import one_at_a_time
from wgllm.hub_progress import Progress, size_text

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EROFS, errno.EIO)


def hub_folder() -> Path:
    """``HF_HUB_CACHE``, else ``HF_HOME``'s, else the user's cache folder's, as huggingface_hub reads them."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_folder(repo: str) -> Path:
    return hub_folder() / f"models--{repo.replace('/', '--')}"


def snapshots(repo: str) -> list[Path]:
    """The folders of the repository's revisions in the cache: that of main, then the others, the latest first."""
    folder = repo_folder(repo)
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    try:
        found = [p for p in (folder / "snapshots").iterdir() if _COMMIT.fullmatch(p.name)]
        return sorted(found, key=lambda p: (p.name != main, -p.stat().st_mtime_ns, p.name))
    except OSError:
        return []


def file_names(folder: Path) -> list[str]:
    """Names of the files below a snapshot, with forward slashes; links to nothing are left out."""
    try:
        return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    except OSError:
        return []


def repos() -> list[str]:
    """The repositories of models that the cache has a snapshot of."""
    try:
        names = [p.name.split("--") for p in hub_folder().iterdir() if p.name.startswith("models--")]
    except OSError:
        return []
    return sorted("/".join(pieces[1:]) for pieces in names if len(pieces) == 3)


# Checking


def is_sound(path: Path, progress: Progress) -> bool:
    """Whether the file in a snapshot has the hash that its blob is named after; hashed once, then remembered.

    Where the system has no links, or the file came without a hash, there is nothing to compare with.
    """
    blob = path.resolve()
    if not _HASH.fullmatch(blob.name):
        return True
    status = blob.stat()
    wanted = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    stamp = _stamp(blob.name)
    try:
        if json.loads(stamp.read_text(encoding="utf-8")) == wanted:
            return True
    except (OSError, ValueError):
        pass
    if status.st_size > 500_000_000:
        progress.message(f"Checking {printable(path.name)}")
    if hash_of(blob, blob.name) != blob.name:
        return False
    # Without a stamp (a cache that we may not write) the file is hashed at each start.
    with contextlib.suppress(OSError):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        temporary = stamp.with_name(f"{stamp.name}.{os.getpid()}")
        temporary.write_text(json.dumps(wanted), encoding="utf-8")
        temporary.replace(stamp)
    return True


def _stamp(sha: str) -> Path:
    return cache_folder() / "verified" / f"{sha}.json"


def hash_of(path: Path, like: str) -> str:
    """The file's SHA-256 or, where ``like`` has 40 digits, the SHA-1 that git has of it."""
    if len(like) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# Adding


def is_disk_error(error: Exception) -> bool:
    """Whether an exception is the disk's; libraries for the network raise OSErrors, too."""
    full = isinstance(error, OSError) and (error.errno in _FULL or getattr(error, "winerror", None) == 112)
    others = (PermissionError, FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return full or isinstance(error, others) or (isinstance(error, OSError) and error.errno in _BROKEN)


@contextlib.contextmanager
def cache_errors() -> Iterator[None]:
    """The disk's errors as DownloadErrors that say what to do."""
    try:
        yield
    except BrokenPipeError:  # nobody reads our messages any more
        raise
    except OSError as error:
        if error.errno in _FULL or getattr(error, "winerror", None) == 112:
            problem = f"no space left on the disk of {hub_folder()}"
        else:
            problem = f"cannot use the Hugging Face cache {hub_folder()}: {error.strerror or error}"
        raise DownloadError(f"{problem}; HF_HOME names another place") from error


def check_space(needed: int) -> None:
    """Raises DownloadError when the cache's disk has not that many bytes."""
    folder = hub_folder()
    existing = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed + SPARE_BYTES:
        raise DownloadError(
            f"not enough space in {folder}: {size_text(needed + SPARE_BYTES)} are needed, {size_text(free)} are "
            "free; HF_HOME names another place"
        )


def partial(repo: str, sha: str) -> Path:
    """Where a blob's bytes are collected."""
    return repo_folder(repo) / "blobs" / f"{sha}.incomplete"


def missing_bytes(repo: str, sha: str, size: int) -> int:
    """What is still to come of a file, by its hash."""
    blob = repo_folder(repo) / "blobs" / sha
    return 0 if size_of(blob) == size else max(0, size - (size_of(partial(repo, sha)) or 0))


def lock(repo: str, sha: str, progress: Progress) -> contextlib.AbstractContextManager[None]:
    """One process at a time fetches a blob; the others wait, and then find it. huggingface_hub takes the same."""
    path = hub_folder() / ".locks" / repo_folder(repo).name / f"{sha}.lock"
    return one_at_a_time(path, f"from {repo}", progress)


def publish(repo: str, commit: str, name: str, sha: str) -> Path:
    """Gives a blob its name in the commit's snapshot, and the branch its commit. Returns the file's path."""
    folder = repo_folder(repo)
    blob = folder / "blobs" / sha
    path = folder.joinpath("snapshots", commit, *name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:  # Windows allows links to some users only
        blob.replace(path)
    ref = folder / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f".main.{os.getpid()}")
    temporary.write_text(commit, encoding="utf-8")
    temporary.replace(ref)
    return path


# Removing


def remove(path: Path) -> int:
    """Deletes a file of a snapshot, and its blob unless another snapshot links to it. Returns the bytes freed."""
    blob, is_link = path.resolve(), path.is_symlink()
    size = size_of(blob) or 0
    path.unlink()
    if not is_link:
        return size
    folder = next(p.parent for p in path.parents if p.name == "snapshots")
    if blob.parent != folder / "blobs" and blob.parent != (folder / "blobs").resolve():
        return 0
    if any(other.resolve() == blob for other in (folder / "snapshots").rglob("*") if other.is_symlink()):
        return 0
    blob.unlink()
    _stamp(blob.name).unlink(missing_ok=True)
    return size
