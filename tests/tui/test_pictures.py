"""The script that makes the pictures of the README."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.tui.thread_worker import ThreadWorker
from wgllm.fake import FakeEngine

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_writes_pictures(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(listener: Any) -> ThreadWorker:
        return ThreadWorker(listener, lambda: FakeEngine("It is **Paris**."))

    model = tmp_path / "fake.gguf"
    model.touch()
    script.main(["-m", str(model), "--folder", str(tmp_path / "made"), "--only", "tokens,light"], make)
    assert [Path(line.split("  ")[0]).name for line in capsys.readouterr().out.splitlines()] == [
        "tokens.svg",
        "light.svg",
    ]
    for name in ("tokens", "light"):
        svg = (tmp_path / "made" / f"{name}.svg").read_text(encoding="utf-8")
        check(svg)
        assert str(tmp_path) not in svg


def check(svg: str) -> None:
    """Fit for GitHub: valid, small, and nothing that would have to be fetched."""
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert len(svg) < 150_000 and "monospace" in svg
    assert "@font-face" not in svg and "url(http" not in svg and "<script" not in svg and "<image" not in svg


def test_the_pictures_that_are_kept_are_those_of_the_script(script: ModuleType) -> None:
    kept = {file.stem: file.read_text(encoding="utf-8") for file in (DOCS / "pictures").glob("*.svg")}
    assert set(kept) == set(script.TABLE_OF_PICTURES)
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for name, svg in kept.items():
        check(svg)
        assert f"docs/pictures/{name}.svg" in readme
