"""Downloads from Hugging Face that go wrong: never a half file under a good name, always a clear error, and resumed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.fake_hub import COMMIT, FakeHub
from tests.unit.hub_builder import Recorder
from wgllm import hub, hub_hf, hub_hf_cache
from wgllm.errors import DownloadError, ModelNotFoundError, WgllmError
from wgllm.hub_hf_quiet import quiet, small_pieces
from wgllm.hub_progress import SilentProgress

DATA = b"GGUF" + random.Random(7).randbytes(200_000 - 4)
LARGE = b"GGUF" + random.Random(8).randbytes(24 * 2**20 - 4)
REPO, NAME = "org/model-GGUF", "model-Q4_K_M.gguf"
PIECE = 4096
ROOT = Path(__file__).parents[2]


@dataclass
class Tally:
    """What the list of reliability asks to be counted."""

    tried: int = 0
    half_files: int = 0
    clear_errors: int = 0
    other: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"downloads: tried {self.tried}, half files under a good name {self.half_files}, "
            f"clear errors {self.clear_errors}, anything else {len(self.other)}"
        )


@pytest.fixture
def served() -> Iterator[FakeHub]:
    with FakeHub({REPO: {NAME: DATA}, "org/large": {"large-Q4_K_M.gguf": LARGE}}) as fake:
        yield fake


@pytest.fixture
def cache(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache in this process, and no waiting between tries."""
    from huggingface_hub import constants

    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("WGLLM_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "hub"


def pull() -> Path:
    return hub.resolve(f"hf:{REPO}", progress=SilentProgress())


def named_files(cache: Path) -> list[Path]:
    """Every file that somebody could take for a whole one."""
    return [
        p
        for p in cache.rglob("*")
        if p.is_file() and p.suffix not in (".incomplete", ".lock") and p.name != "main"
    ]


def try_it(tally: Tally, cache: Path, case: str, attempt: Callable[[], Path] = pull) -> WgllmError | None:
    """One download that may fail: what it leaves must be whole or nameless, and its error one clear line."""
    tally.tried += 1
    problem: WgllmError | None = None
    try:
        attempt()
    except WgllmError as error:
        problem = error
        text = str(error)
        clear = (
            error.exit_code == 3
            and text.isprintable()
            and len(text) < 400
            and ("org/" in text or str(cache) in text)
        )
        tally.clear_errors += clear
        if not clear:
            tally.other.append(f"{case}: {text}")
    except Exception as error:
        tally.other.append(f"{case}: {error!r}")
    tally.half_files += sum(path.read_bytes() not in (DATA, LARGE) for path in named_files(cache))
    return problem


def test_the_list_of_faults(served: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally()

    # Cut at 20 places, again and again; then the line holds, and what had come is not fetched twice.
    size = len(DATA)
    for offset in [0, 1, PIECE - 1, PIECE, PIECE + 1, size - 1, *range(9_999, size, 14_000)][:20]:
        served.faults[REPO] = f"cut:{offset}"
        assert try_it(tally, cache, f"cut at {offset}") is not None
        served.faults.clear()
        served.bytes_sent = 0
        assert try_it(tally, cache, f"after the cut at {offset}") is None
        kept = offset // PIECE * PIECE
        assert served.bytes_sent == size - kept, offset
        hub.remove(f"hf:{REPO}")
        assert named_files(cache) == []

    # What is left of a download, and a server that ignores where to go on.
    served.faults[REPO] = "cut:100000"
    try_it(tally, cache, "cut")
    served.faults[REPO] = "no-range"
    assert try_it(tally, cache, "Range ignored") is None
    hub.remove(f"hf:{REPO}")

    # Nothing that lies is kept, so that the next try starts afresh.
    for fault in ("wrong", "short", "more"):
        served.faults[REPO] = fault
        error = try_it(tally, cache, fault)
        assert isinstance(error, DownloadError), fault
        if fault == "wrong":
            assert "wrong SHA-256" in str(error)
        served.faults.clear()
        assert try_it(tally, cache, f"after {fault}") is None
        hub.remove(f"hf:{REPO}")

    for code in (401, 403, 404, 408, 429, 500, 502, 503, 504):
        for where in ("api", "file"):
            served.faults[REPO] = f"{where}:{code}"
            error = try_it(tally, cache, f"{where} {code}")
            assert isinstance(error, (DownloadError, ModelNotFoundError)), (where, code)
            if code == 429:
                assert "too many requests" in str(error)
    served.faults[REPO] = "gated"
    assert "HF_TOKEN" in str(try_it(tally, cache, "gated"))

    served.faults[REPO] = "stall:50000"
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
        asked = served.asked
        assert "goes on where it stopped" in str(try_it(tally, cache, "stall"))
        assert served.asked - asked < 10
    served.faults.clear()
    assert try_it(tally, cache, "after the stall") is None
    hub.remove(f"hf:{REPO}")

    def full(url: str, target: object, **_: object) -> None:
        target.write(DATA[:1000])  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        assert "no space left" in str(try_it(tally, cache, "disk fills up"))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=20 << 10))
        assert "not enough space" in str(try_it(tally, cache, "disk is full"))

    # The cache is a file, and a folder nobody may write (root may, so that the system is asked first).
    from huggingface_hub import constants

    blocked = cache.parent / "blocked"
    blocked.write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(blocked))
    assert "cannot use the Hugging Face cache" in str(try_it(tally, blocked, "cache is a file"))
    with monkeypatch.context() as patch:

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(hub_hf_cache, "lock", denied)
        assert "HF_HOME names another place" in str(try_it(tally, cache, "read-only cache"))

    print(tally)
    assert tally.half_files == 0
    assert tally.other == []


def test_a_damaged_file_in_the_cache_is_noticed_and_fetched_again(served: FakeHub, cache: Path) -> None:
    path = pull()
    assert path.read_bytes() == DATA
    if not path.is_symlink():
        pytest.skip("without links the cache names no hashes")
    blob = path.resolve()
    blob.write_bytes(b"\0" * len(DATA))
    os.utime(blob, (1, 1))
    with pytest.raises(ModelNotFoundError, match="damaged"):
        hub.resolve(f"hf:{REPO}", download=False, progress=SilentProgress())
    assert pull().read_bytes() == DATA


@pytest.mark.skipif(os.name == "nt", reason="Windows allows links to some users only")
def test_removing_takes_every_revision_but_leaves_what_another_file_uses(
    served: FakeHub, cache: Path
) -> None:
    path = pull()
    other = path.parent.parent / ("f" * 40)
    other.mkdir()
    for name in (NAME, "another.bin"):
        (other / name).symlink_to(os.path.relpath(path.resolve(), other))
    assert hub.remove(f"hf:{REPO}") == 0
    assert not path.exists() and not (other / NAME).exists()
    assert (other / "another.bin").read_bytes() == DATA


def test_huggingface_hub_finds_what_we_fetched_and_we_what_it_fetched(served: FakeHub, cache: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    path = pull()
    assert try_to_load_from_cache(REPO, NAME, cache_dir=cache) == str(path)
    assert path.parent.name == COMMIT
    served.bytes_sent = 0
    assert pull() == path
    assert served.bytes_sent == 0


def test_a_listener_hears_of_every_piece_and_may_stop_it(served: FakeHub, cache: Path) -> None:
    class Stops(Recorder):
        def update(self, done: int) -> None:
            super().update(done)
            if done > 50_000:
                raise KeyboardInterrupt

    told, again = Stops(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        hub.resolve(f"hf:{REPO}", progress=told)
    assert told.done == [0, *range(PIECE, 50_000 + PIECE, PIECE)] and told.total == len(DATA)
    assert told.finished == 1 and "goes on from there" in told.messages[-1] and not named_files(cache)
    assert hub.resolve(f"hf:{REPO}", progress=again).read_bytes() == DATA
    assert again.done[0] == told.done[-1] and again.done == sorted(again.done) and again.done[-1] == len(DATA)
    assert served.ranges == [f"bytes={told.done[-1]}-"]


def test_what_would_come_is_told_before(served: FakeHub, cache: Path) -> None:
    told = hub_hf.describe(REPO, None)
    assert (told.files, told.size, told.missing, told.licence) == ((NAME,), len(DATA), len(DATA), "mit")
    served.faults[REPO] = "cut:100000"
    with pytest.raises(DownloadError):
        pull()
    assert hub_hf.describe(REPO, None).missing == len(DATA) - 100_000 // PIECE * PIECE
    served.faults[REPO] = "gated"
    with pytest.raises(DownloadError, match="is gated: accept its conditions at"):
        hub_hf.describe(REPO, None)


def test_two_threads_leave_the_library_as_it_was() -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled(), constants.DOWNLOAD_CHUNK_SIZE
    first, second = (ExitStack() for _ in range(2))
    for stack in (first, second):
        stack.enter_context(quiet())
        stack.enter_context(small_pieces())
    first.close()
    assert are_progress_bars_disabled() and constants.DOWNLOAD_CHUNK_SIZE <= 1 << 18
    second.close()
    assert (are_progress_bars_disabled(), constants.DOWNLOAD_CHUNK_SIZE) == before


def command(
    served: FakeHub, folder: Path, name: str, *, stderr: Any = subprocess.PIPE
) -> subprocess.Popen[str]:
    env = os.environ | {
        "HF_ENDPOINT": served.endpoint, "HF_HOME": str(folder), "WGLLM_CACHE_DIR": str(folder / "own"),
        "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "120", "HF_HUB_ETAG_TIMEOUT": "120",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "wgllm", "pull", name],
        env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(process: subprocess.Popen[str], how: int) -> tuple[str, str]:
    process.send_signal(how)
    return process.communicate(timeout=120)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_killed_and_interrupted_downloads_go_on(served: FakeHub, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--org--large" / "blobs"
    for how, end in ((signal.SIGKILL, 20 << 20), (signal.SIGINT, 23 << 20)):
        served.faults["org/large"] = f"stall:{end}"
        process = command(served, tmp_path, "org/large")
        wait_for(lambda end=end: any(p.stat().st_size == end for p in blobs.glob("*.incomplete")))
        _, messages = stop(process, how)
        assert process.returncode == (130 if how == signal.SIGINT else -9), messages
        assert "Traceback" not in messages
        assert all(p.suffix == ".incomplete" for p in blobs.iterdir())
    served.faults.clear()
    served.bytes_sent = 0
    process = command(served, tmp_path, "org/large")
    path, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert "already here: 24.1 MB" in messages
    assert Path(path.strip()).read_bytes() == LARGE
    assert served.bytes_sent == len(LARGE) - (23 << 20)
    print("downloads killed and interrupted: tried 2, half files under a good name 0, resumed 1")


def test_two_at_once_fetch_it_once(served: FakeHub, tmp_path: Path) -> None:
    served.faults["org/large"] = "held"
    told = [tmp_path / "first", tmp_path / "second"]
    with ExitStack() as stack:
        files = [stack.enter_context(file.open("wb")) for file in told]
        processes = [command(served, tmp_path, "org/large", stderr=file) for file in files]
    # One fetches, the other one waits.
    wait_for(lambda: any("Another process is fetching" in file.read_text() for file in told))
    served.go_on.set()
    outputs = [
        (p.communicate(timeout=120)[0], file.read_text()) for p, file in zip(processes, told, strict=True)
    ]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert len({path for path, _ in outputs}) == 1
    assert Path(outputs[0][0].strip()).read_bytes() == LARGE
    assert served.bytes_sent == len(LARGE)
