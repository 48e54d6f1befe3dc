"""Which open store generates a reply: so that replies of a process that died are told from those of one that runs.

Each open store holds the lock of a file with its token as name, in a folder beside the database. The system frees
the lock when the process ends, however it does. All of this happens while ``opening`` is held but for ``close``.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import filelock


class Owner:
    """This store's mark on its replies, until ``close``. Raises OSError when no file can be locked."""

    def __init__(self, database: Path) -> None:
        self._folder = database.with_name(f"{database.name}.running")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.token = secrets.token_hex(8)
        self._lock = _lock(self._folder / f"{self.token}.lock")
        self._lock.acquire(timeout=0)

    def running(self) -> list[str]:
        """The tokens of all stores that are open, this one's among them; removes what others have left."""
        import filelock

        found = []
        for file in self._folder.glob("*.lock"):
            if file.stem != self.token:
                lock = _lock(file)
                try:
                    lock.acquire(timeout=0)
                except filelock.Timeout:
                    pass
                else:
                    lock.release()
                    file.unlink(missing_ok=True)
                    continue
            found.append(file.stem)
        return found

    def close(self) -> None:
        self._lock.release()
        with contextlib.suppress(OSError):
            (self._folder / f"{self.token}.lock").unlink(missing_ok=True)


def _lock(path: Path) -> filelock.FileLock:
    import filelock

    return filelock.FileLock(path, mode=0o600, thread_local=False)
