"""The file of conversations: modes, versions, damage, several processes, processes that are killed, full disks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kill_sessions
from wgllm import sessions_db
from wgllm.errors import SessionStoreError
from wgllm.sessions import SessionStore
from wgllm.sessions_db import LATEST, data_folder
from wgllm.sessions_schema import APPLICATION_ID
from wgllm.sessions_shelf import COMFORT_SECONDS
from wgllm.sessions_types import MessageState

VERSION_1 = Path(__file__).parents[1] / "data" / "sessions" / "version-1.sql"

modes = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.db"


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def filled(path: Path) -> int:
    """A store with a session of some messages, closed; the session."""
    with SessionStore.open(path) as store:
        made = store.new_session()
        for i in range(50):
            store.append(made.id, "user", f"message {i} " * 50)
    return made.id


def files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file() and p.suffix != ".lock"}


# Place, modes, settings


def test_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WGLLM_DATA_DIR", str(tmp_path / "here"))
    with SessionStore.open() as store:
        assert store.file == tmp_path / "here" / "chats.db"
        assert store.notices == ()
    monkeypatch.delenv("WGLLM_DATA_DIR")
    assert data_folder().name == "wgllm" and data_folder().is_absolute()


@modes
def test_only_the_owner_may_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        with SessionStore.open(path) as store:
            store.append(store.new_session().id, "user", "x")
            assert path.parent.stat().st_mode & 0o777 == 0o700
            found = list(path.parent.rglob("*"))
            assert {p.name for p in found} >= {"chats.db", "chats.db-wal", "chats.db-shm"}
            assert {p.stat().st_mode & 0o777 for p in found if p.is_file()} == {0o600}
    finally:
        os.umask(before)
    path.chmod(0o644)
    SessionStore.open(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_how_the_connection_is_set(path: Path) -> None:
    with SessionStore.open(path) as store, store._database.reading() as connection:
        for pragma, value in (
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("busy_timeout", 10_000),
            ("user_version", LATEST),
            ("application_id", APPLICATION_ID),
        ):
            assert connection.execute(f"PRAGMA {pragma}").fetchone() == (value,), pragma


def test_nothing_is_left_beside_it(path: Path) -> None:
    filled(path)
    assert sorted(files(path)) == ["chats.db"]
    assert list((path.parent / "chats.db.running").iterdir()) == []


# Versions


def version_1(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with raw(path) as connection:
        connection.executescript(VERSION_1.read_text(encoding="utf-8"))


def test_version_1_is_migrated(path: Path) -> None:
    version_1(path)
    before = path.read_bytes()
    with SessionStore.open(path) as store:
        assert store.notices == ()
        bread, sky = store.sessions()
        assert (bread.title, sky.title) == ("Bread", "Why is the sky blue?")
        session = store.session(sky.id)
        assert (session.settings, session.draft, session.named) == (
            {"temperature": 0.5},
            "and at night?",
            False,
        )
        question, answer = store.path(sky.id)
        assert (answer.content, answer.stats, answer.position) == (
            "Rayleigh scattering.",
            {"generated_tokens": 3},
            1,
        )
        assert [store.message(i).state for i in store.siblings(answer.id)] == ["complete", "stopped"]
        assert store.path(bread.id)[1].state is MessageState.INTERRUPTED
        assert [hit.message_id for hit in store.search("sourdough")] == [4]
        assert [hit.message_id for hit in store.search("twelve")] == [5]
        store.inputs.add("x")
        store.presets.save("x", {})
        assert question.position == question.n_siblings == 1
    (backup,) = path.parent.glob("chats.version-1-*.db")
    with raw(backup) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (5,)
    assert len(before) == backup.stat().st_size
    if os.name != "nt":
        assert backup.stat().st_mode & 0o777 == 0o600
    SessionStore.open(path).close()
    assert len(list(path.parent.glob("chats.version-*"))) == 1


def test_a_migration_that_fails_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(path)
    broken = (*sessions_db.MIGRATIONS[1], "CREATE TABLE messages (id)")
    with monkeypatch.context() as patch:
        patch.setattr(sessions_db, "MIGRATIONS", (sessions_db.MIGRATIONS[0], broken))
        with pytest.raises(SessionStoreError, match="already exists"):
            SessionStore.open(path)
    with raw(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'presets'").fetchone()
    with SessionStore.open(path) as store:
        assert len(store.sessions()) == 2


def test_a_migration_without_room_for_its_backup_does_not_begin(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_1(path)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(sessions_db, "_make_file", lambda p: full() if p != path else None)
        with pytest.raises(SessionStoreError, match="no space"):
            SessionStore.open(path)
    assert sorted(files(path)) == ["chats.db"]
    with raw(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    filled(path)
    with raw(path) as connection:
        connection.execute(f"PRAGMA user_version = {LATEST + 1}")
        connection.execute("CREATE TABLE of_the_future (x)")
    before = files(path)
    with pytest.raises(
        SessionStoreError, match=f"newer wgllm .version {LATEST + 1}; this one reads {LATEST}"
    ) as e:
        SessionStore.open(path)
    assert str(e.value).isprintable()
    assert files(path)["chats.db"] == before["chats.db"]
    assert set(files(path)) <= {"chats.db", "chats.db-wal", "chats.db-shm"}


def test_a_newer_version_that_was_killed_is_left_alone(path: Path) -> None:
    filled(path)
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        f"c.execute('PRAGMA user_version = {LATEST + 1}'); c.execute('CREATE TABLE x (y)'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    before = {name: data for name, data in files(path).items() if not name.endswith("-shm")}
    assert "chats.db-wal" in before
    with pytest.raises(SessionStoreError, match="newer"):
        SessionStore.open(path)
    assert {name: data for name, data in files(path).items() if not name.endswith("-shm")} == before


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with raw(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = files(path)
    with pytest.raises(SessionStoreError, match="another program"):
        SessionStore.open(path)
    assert files(path) == before


# Damage


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def scribbled(data: bytes, rng: random.Random) -> bytes:
    """A page of noise in the midst of it, but not where SQLite sees no difference."""
    at = rng.randrange(1, len(data) // 4096 - 1) * 4096
    return data[:at] + rng.randbytes(4096) + data[at + 4096 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, rng: b"this is no database" * 100,
        lambda data, rng: b"\0" * len(data),
        lambda data, rng: data[:50],
        lambda data, rng: data[:4096],
        lambda data, rng: data[: len(data) // 2],
        lambda data, rng: data[:100] + b"\xff" * 4000 + data[4100:],
        *([cut] * 5),
        *([scribbled] * 10),
    ],
)
def test_a_damaged_file_is_set_aside(path: Path, damage: object, request: pytest.FixtureRequest) -> None:
    assert callable(damage)
    filled(path)
    broken = damage(path.read_bytes(), random.Random(request.node.name))
    path.write_bytes(broken)
    with SessionStore.open(path) as store:
        (notice,) = store.notices
        assert store.sessions() == []
        made = store.new_session(title="new")
    (aside,) = path.parent.glob("chats.damaged-*.db")
    assert aside.read_bytes() == broken
    assert aside.name in notice and notice.isprintable()
    with SessionStore.open(path) as store:
        assert store.notices == ()
        assert [s.id for s in store.sessions()] == [made.id]


def test_every_damaged_file_is_kept(path: Path) -> None:
    for i in range(3):
        filled(path)
        path.write_bytes(b"damaged %d" % i * 100)
        SessionStore.open(path).close()
    assert {p.read_bytes()[:9] for p in path.parent.glob("chats.damaged-*")} == {
        b"damaged 0",
        b"damaged 1",
        b"damaged 2",
    }


def test_damage_while_it_is_open_is_told(path: Path) -> None:
    session = filled(path)
    with SessionStore.open(path) as store:
        with store._database.reading() as connection:
            connection.execute("PRAGMA cache_size = 0")
            connection.execute("PRAGMA shrink_memory")
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (len(data) - 4096))
        with pytest.raises(SessionStoreError, match="damaged; the next start sets it aside"):
            store.path(session)
            store.sessions()
    with SessionStore.open(path) as store:
        assert len(store.notices) == 1


def test_a_damaged_index_is_made_anew(path: Path) -> None:
    session = filled(path)
    with raw(path) as connection:
        connection.execute("UPDATE search_index_data SET block = x'ffffffff' WHERE id >= 10")
    with SessionStore.open(path) as store:
        assert store.notices == ()
        added = store.append(session, "user", "something unheard of")
        assert len(store.search("message", limit=100)) == 51  # and the title
        assert [hit.message_id for hit in store.search("unheard")] == [added.id]
    with SessionStore.open(path) as store:
        assert len(store.search("message", limit=100)) == 51


# What cannot be opened or written


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SessionStoreError, match="not a regular file"):
        SessionStore.open(tmp_path / "folder")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(SessionStoreError, match="not a regular file"):
            SessionStore.open(tmp_path / "fifo")
    (tmp_path / "file").touch()
    with pytest.raises(SessionStoreError) as caught:
        SessionStore.open(tmp_path / "file" / "chats.db")
    assert str(caught.value).isprintable()


@modes
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SessionStoreError, match="cannot be"):
            SessionStore.open(tmp_path / "chats.db")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_loses_nothing(path: Path) -> None:
    session = filled(path)
    with SessionStore.open(path) as store:
        reply = store.begin_reply(session)
        with store._database.reading() as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        text = "x" * 100_000
        for action in (
            lambda: store.append(session, "user", text),
            lambda: (store.update_reply(reply.id, text), store.flush()),
            lambda: store.finish_reply(reply.id),
        ):
            with pytest.raises(SessionStoreError, match="no space is left"):
                action()
        assert store.sessions()[0].n_messages == 51
        assert store.message(reply.id).content == text
        with store._database.reading() as connection:
            connection.execute("PRAGMA max_page_count = 100000")
        assert store.finish_reply(reply.id).content == text
        store.append(session, "user", "goes on")
        assert store.search("goes")


def test_comforts_wait_for_the_file_and_not_the_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    told: list[str] = []
    now = [0.0]
    with SessionStore.open(path, monotonic=lambda: now[0]) as store, raw(path) as other:
        store.shelf.trouble = lambda error: told.append(str(error))
        other.execute("BEGIN IMMEDIATE")
        waits: list[float | None] = []
        writing = store._database.writing
        monkeypatch.setattr(store._database, "writing", lambda wait=None: waits.append(wait) or writing(wait))
        for i in range(100):
            store.kept.put("place", i)
            store.inputs.add(f"line {i % 3}")
        assert waits == [COMFORT_SECONDS], "it is not tried again each time"
        assert len(told) == 1 and "another program" in told[0]
        assert store.kept.get("place") == 99, "though it is not in the file"
        other.execute("ROLLBACK")
        now[0] += 10
        store.kept.put("other", 1)
        assert other.execute("SELECT count(*) FROM kept WHERE key IN ('place', 'other')").fetchone() == (2,)
        assert store.inputs.recent(3) == ["line 0", "line 2", "line 1"]
        other.execute("BEGIN IMMEDIATE")
        store.kept.put("place", 100)
        assert len(told) == 2, "it had worked again"
        other.execute("ROLLBACK")
    with SessionStore.open(path) as store:
        assert store.kept.get("place") == 100, "closing writes what waits"


def test_a_file_that_another_program_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = filled(path)
    monkeypatch.setattr(sessions_db, "BUSY_SECONDS", 0.2)
    with SessionStore.open(path) as store, raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        assert len(store.path(session)) == 50
        with pytest.raises(SessionStoreError, match="another program has held the file"):
            store.append(session, "user", "x")
        other.execute("ROLLBACK")
        store.append(session, "user", "x")
    with sessions_db.opening(path), pytest.raises(SessionStoreError, match="is opening the file"):
        SessionStore.open(path)


# Several processes


def test_two_stores_see_each_other(path: Path) -> None:
    with SessionStore.open(path) as one, SessionStore.open(path) as two:
        made = one.new_session()
        first = two.append(made.id, "user", "first")
        reply = one.begin_reply(made.id, after=first.id)
        # The other one has asked something else meanwhile, and moved the leaf.
        two.edit(first.id, "other")
        one.finish_reply(reply.id, "done")
        assert [m.content for m in two.path(made.id)] == ["other"]
        assert [m.content for m in two.switch(first.id)] == ["first", "done"]
        assert [m.content for m in one.path(made.id)] == ["first", "done"]


def test_two_stores_write_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that reads before it writes must not fail because the other one wrote in between."""
    monkeypatch.setattr(
        sessions_db, "BUSY_SECONDS", 120.0
    )  # SQLite promises no turns, and a disk may be slow
    session = filled(path)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            with SessionStore.open(path) as store:
                for i in range(150):
                    store.append(session, "user", f"more {i}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with SessionStore.open(path) as store:
        assert len(store.path(session)) == 500


def test_a_reply_of_a_running_process_is_left_alone(path: Path) -> None:
    with SessionStore.open(path) as one:
        reply = one.begin_reply(one.new_session().id)
        with SessionStore.open(path) as two:
            assert two.message(reply.id).state is MessageState.PARTIAL
        assert one.finish_reply(reply.id, "done").state is MessageState.COMPLETE


def test_a_reply_of_a_dead_process_is_interrupted(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from wgllm.sessions import SessionStore;"
        "s = SessionStore.open(Path(sys.argv[1])); r = s.begin_reply(s.new_session().id);"
        "s.update_reply(r.id, 'half an ans'); s.flush(); os._exit(0)"
    )
    with SessionStore.open(path) as running:
        own = running.begin_reply(running.new_session().id)
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=kill_sessions.ROOT)
        with SessionStore.open(path) as store:
            (hit,) = store.search("half")
            assert hit.message_id is not None
            message = store.message(hit.message_id)
            assert (message.content, message.state) == ("half an ans", MessageState.INTERRUPTED)
            assert store.message(own.id).state is MessageState.PARTIAL
            assert len(list((path.parent / "chats.db.running").iterdir())) == 2
    assert list((path.parent / "chats.db.running").iterdir()) == []


def test_processes_that_start_at_once(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from wgllm import sessions_db; from wgllm.sessions import SessionStore\n"
        "sessions_db.BUSY_SECONDS = 120.0\n"
        "with SessionStore.open(Path(sys.argv[1])) as s:\n"
        "    made = s.new_session()\n"
        "    for i in range(20): s.append(made.id, 'user', f'message {i}')\n"
        "    assert not s.notices, s.notices\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=kill_sessions.ROOT) for _ in range(4)
    ]
    assert [process.wait(timeout=120) for process in started] == [0] * 4
    with SessionStore.open(path) as store:
        assert [s.n_messages for s in store.sessions()] == [20] * 4
        assert len(store.search("message", limit=1000)) == 84


def test_killed_at_random_moments(tmp_path: Path) -> None:
    found = kill_sessions.run(20, tmp_path)
    assert found.faults == []
    assert found.kills == 20
    assert found.in_replies >= 5


def test_a_copy_without_its_log_is_whole(path: Path, tmp_path: Path) -> None:
    """What SQLite promises of a file that was synchronised, with the log lost: an older state, never half of one."""
    session = filled(path)
    with SessionStore.open(path) as store:
        store.append(session, "user", "in the log")
        shutil.copy(path, tmp_path / "copy.db")
    with SessionStore.open(tmp_path / "copy.db") as store:
        assert store.notices == ()
        assert store.sessions()[0].n_messages == 50
