"""One process at a time fetches a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from wgllm.hub_progress import Progress


@contextlib.contextmanager
def one_at_a_time(path: Path, what: str, progress: Progress) -> Iterator[None]:
    """Holds the lock file ``path``; others wait for it, and are told that another process is fetching ``what``."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress.message(f"Another process is fetching {what}; waiting for it")
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()
