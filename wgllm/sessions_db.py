"""The database of conversations as a file: where it lies, opening, migrating, damage, locks and errors.

SQLite in WAL mode, so that a process may be killed at any time and several may read and write. ``synchronous`` is
FULL: a commit is on the disk when it returns, even if the power fails then; there is hardly one in a second, so
that a few milliseconds each are no price.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from wgllm.errors import SessionStoreError
from wgllm.sessions_schema import APPLICATION_ID, MIGRATIONS

FILE_NAME = "chats.db"
LATEST = len(MIGRATIONS)
BUSY_SECONDS = 10.0
"""How long one process waits for another one's transaction."""
_HELD = "another program has held the file for too long; try again"


def data_folder() -> Path:
    """Where wgllm keeps what users made: ``WGLLM_DATA_DIR``, else the user's data folder."""
    if chosen := os.environ.get("WGLLM_DATA_DIR"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("wgllm", appauthor=False))


class Database:
    """One connection behind a lock: any thread may use it, one at a time. See ``open_database``."""

    def __init__(self, path: Path, connection: sqlite3.Connection, notices: tuple[str, ...]) -> None:
        self.path = path
        self.notices = notices
        self._connection: sqlite3.Connection | None = connection
        self.lock = threading.RLock()
        self.patience = BUSY_SECONDS
        """Seconds that a transaction waits for another process's."""

    @contextlib.contextmanager
    def writing(self, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction, taken back as a whole when the block raises. Raises SessionStoreError.

        ``patience``: how long it waits for other processes and threads, in seconds; None: as ``self.patience`` says
        for processes, and for ever for threads.
        """
        if not self.lock.acquire(timeout=-1 if patience is None else patience):
            raise SessionStoreError(self.path, _HELD)
        try:
            with self._transaction("BEGIN IMMEDIATE", patience) as connection:
                yield connection
        finally:
            self.lock.release()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All that the block reads is of one moment. Raises SessionStoreError."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        with self.lock, store_errors(self.path):
            connection = self._connection
            if connection is None:
                raise SessionStoreError(self.path, "are closed")
            milliseconds = round(1000 * (self.patience if patience is None else patience))
            connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # After some errors (a full disk) SQLite has taken the transaction back itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @property
    def closed(self) -> bool:
        return self._connection is None

    def close(self) -> None:
        with self.lock, store_errors(self.path):
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, rather than locked, full or out of reach."""
    return "malformed" in str(error) or "not a database" in str(error)


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Makes one line for the user of what SQLite and the file system raise."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if is_damage(error):
            problem = "the file is damaged; the next start sets it aside"
        elif "full" in text:
            problem = "no space is left on the disk; what could not be saved is not in the file"
        elif "locked" in text or "busy" in text:
            problem = _HELD
        elif "readonly" in text:
            problem = "the file cannot be written"
        elif "unable to open" in text:
            problem = "the file cannot be opened"
        else:
            problem = f"the file cannot be used: {text}"
        raise SessionStoreError(path, problem) from error
    except OSError as error:
        raise SessionStoreError(path, f"the file cannot be used: {error.strerror or error}") from error


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """One process at a time opens the file, so that creating, migrating and setting aside cannot meet."""
    import filelock

    with store_errors(path):
        # Folders that stand there already, perhaps shared, keep their modes.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_name(f"{path.name}.lock"), mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=BUSY_SECONDS)
        except filelock.Timeout:
            raise SessionStoreError(path, "another program is opening the file and does not end") from None
        try:
            yield
        finally:
            lock.release()


class _Damaged(Exception):
    pass


def open_database(path: Path) -> Database:
    """Opens or makes the file, in ``opening``. A damaged one is set aside under another name, which ``notices`` say.

    Raises SessionStoreError; a file of a newer version or of another program is not written to.
    """
    with store_errors(path):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise SessionStoreError(path, "is not a regular file")
        try:
            return Database(path, _open(path), ())
        except _Damaged:
            aside = _set_aside(path)
        notice = f"{path.name} was damaged and is now {aside.name}; conversations begin anew in {path}"
        return Database(path, _open(path), (notice,))


def _open(path: Path) -> sqlite3.Connection:
    _make_file(path)
    connection: sqlite3.Connection | None = None
    try:
        # Looking at it read-only first: a connection that may write tidies up the file when it is closed. What a
        # process has left that was killed at a bad moment can only be opened for writing.
        with contextlib.suppress(sqlite3.OperationalError):
            uri = f"{path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as look:
                _examine(path, look)
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        version = _examine(path, connection)
        if any(not _of_index(row[0]) for row in connection.execute("PRAGMA quick_check")):
            raise _Damaged
        if 0 < version < LATEST:
            _back_up(path, connection, version)
        # A file system without shared memory keeps its rollback journal, which is as safe.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            "trusted_schema = OFF",
            "cache_size = -16384",  # KiB
            "secure_delete = ON",  # what users delete is overwritten
            "journal_size_limit = 16777216",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        _migrate(connection)
        return connection
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.DatabaseError) and is_damage(error):
            raise _Damaged from error
        raise


def _make_file(path: Path) -> None:
    """Creates it if need be, for its owner alone; SQLite gives the files beside it the same mode."""
    # An existing file is never opened here: closing it would end the locks that SQLite holds in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if os.name != "nt" and path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _examine(path: Path, connection: sqlite3.Connection) -> int:
    """The version of the tables, 0 for an empty file. Raises SessionStoreError for what is not ours to change."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    empty = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
    if application != APPLICATION_ID and (application or version or not empty):
        raise SessionStoreError(path, "is a database of another program")
    if version > LATEST:
        raise SessionStoreError(
            path, f"were written by a newer wgllm (version {version}; this one reads {LATEST}): update wgllm"
        )
    return version


def _of_index(finding: str) -> bool:
    """Whether quick_check is content, or complains of the full-text index alone, which is made anew."""
    return finding == "ok" or "fts5" in finding.lower()


def _migrate(connection: sqlite3.Connection) -> None:
    for version, statements in enumerate(MIGRATIONS, 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] < version:
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _back_up(path: Path, connection: sqlite3.Connection, version: int) -> None:
    """Keeps the file as it is beside the one that is about to be migrated."""
    whole = _free_name(path, f"version-{version}")
    copy = whole.with_name(f".{whole.name}.part")
    try:
        copy.unlink(missing_ok=True)
        _make_file(copy)
        with contextlib.closing(sqlite3.connect(copy)) as target:
            connection.backup(target)
        copy.replace(whole)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _set_aside(path: Path) -> Path:
    aside = _free_name(path, "damaged")
    # The file last: what died half-way would else leave a log that belongs to no file.
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    return aside


def _free_name(path: Path, what: str) -> Path:
    stem = f"{path.stem}.{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidate, n = path.with_name(stem + path.suffix), 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{stem}-{n}{path.suffix}")
    return candidate
