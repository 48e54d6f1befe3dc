"""README.md's tables of what was compared with references: whole, of this version, and never written by halves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import families
from tests.conftest import REFERENCE_FILES
from tests.families import BACKENDS, KINDS, NONE, README, Measured, Writer
from tests.tiny import ALL, DATA, DIRECTORIES
from wgllm.catalog import WheelEntry, load_catalog
from wgllm.models import FAMILIES

TEXT = README.read_text(encoding="utf-8")
AGAIN = "run: python -m pytest --write-families"


def rows(name: str, text: str = TEXT) -> list[list[str]]:
    lines = [line for line in families.written(text, name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def without_tables(text: str) -> str:
    for name in ("families", "real models"):
        text = families.replaced(text, name, "")
    return text


def test_every_family_has_a_row() -> None:
    shown = {row[0].strip("`"): row[1] for row in rows("families")}
    assert shown.keys() == FAMILIES.keys(), AGAIN
    assert shown == families.names(), AGAIN
    assert all(shown.values())


def test_every_cell_tells_of_all_models_there_are() -> None:
    models = families.tiny_models()
    assert rows("families")
    for architecture, _, *cells in rows("families"):
        for kind, first in zip(KINDS, (0, 2), strict=True):
            n = len(models.get((architecture.strip("`"), kind), ()))
            for cell in cells[first : first + 2]:
                assert cell == NONE if n == 0 else cell.endswith(f" ({n})"), f"{architecture}: {AGAIN}"
        assert cells[0] != NONE


def test_every_real_model_has_a_row() -> None:
    catalog = load_catalog()
    entries = [catalog.find(name) for name in REFERENCE_FILES]
    stems = {Path(e.file).stem for e in entries if isinstance(e, WheelEntry)}
    assert {row[0] for row in rows("real models")} == stems, f"{AGAIN} --models all"
    assert all(row[1] != NONE for row in rows("real models"))


@given(st.floats(0, 0.5))
def test_errors_are_rounded_up_and_not_far(worst: float) -> None:
    said = float(families.rounded_up(worst))
    assert worst <= said
    assert said <= max(1e-5, 2.5 * worst * (1 + 1e-9))


@pytest.mark.parametrize("worst", [0.51, float("nan"), float("inf")])
def test_an_error_beyond_all_tolerances_is_not_shown(worst: float) -> None:
    with pytest.raises(StopIteration):
        families.rounded_up(worst)


# The run


class Item(SimpleNamespace):
    def get_closest_marker(self, name: str) -> object:
        return self if name == "model" and self.real else None


def everything() -> Iterator[tuple[str, Measured]]:
    """What a whole run would report."""
    for model in (*ALL, *DIRECTORIES):
        for backend, adapter in zip(BACKENDS, ("", "card"), strict=True):
            yield f"{model.id} {backend}", families.measurement(model.path, 3e-5, adapter)
    yield "real", Measured("llama", "GGUF", "Some-1B.Q4_0", True, ("Q4_0",), "NumPy", "", 2e-4)


class Run:
    """A session of pytest as the plugin sees it."""

    def __init__(self, readme: Path, *, real: bool = True) -> None:
        self.writer = Writer(readme, real=real)
        self.config: Any = SimpleNamespace(
            args=["tests"], hook=SimpleNamespace(pytest_deselected=lambda items: None)
        )
        self.reports = dict(everything())
        names = [*self.reports, "other"]
        self.items: Any = [
            Item(nodeid=name, fixturenames=["measured"] if name != "other" else [], real=name == "real")
            for name in names
        ]

    def collect(self) -> list[str]:
        self.writer.pytest_collection_modifyitems(self.config, self.items)
        return [item.nodeid for item in self.items]

    def report(self, name: str, *, when: str = "call", passed: bool = True) -> None:
        properties = [("logits", self.reports[name]), ("other", 1)]
        report: Any = SimpleNamespace(when=when, passed=passed, nodeid=name, user_properties=properties)
        self.writer.pytest_runtest_logreport(report)

    def finish(self, failed: int = 0) -> int:
        session: Any = SimpleNamespace(testsfailed=failed, exitstatus=0, config=self.config)
        self.writer.pytest_sessionfinish(session)
        return int(session.exitstatus)


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_whole_run_writes_both_tables_and_nothing_else(readme: Path) -> None:
    for _ in range(2):
        run = Run(readme)
        for name in run.collect():
            run.report(name)
        assert run.finish() == 0
        made = readme.read_text(encoding="utf-8")
        assert rows("real models", made) == [["Some-1B.Q4_0", "≤ 2e-4", NONE]]
        assert len(rows("families", made)) == len(FAMILIES)
        assert {c.partition(" (")[0] for row in rows("families", made) for c in row[2:]} <= {"≤ 5e-5", NONE}
        assert "WebGPU ran on card." in made
        assert without_tables(made) == without_tables(TEXT)


def test_without_real_models_their_table_stays(readme: Path) -> None:
    run = Run(readme, real=False)
    names = run.collect()
    assert "real" not in names and "other" not in names
    for name in names:
        run.report(name)
    assert run.finish() == 0
    assert rows("real models", readme.read_text(encoding="utf-8")) == rows("real models")


@pytest.mark.parametrize("why", ["skipped", "failed", "left out", "one test", "not collected", "teardown"])
def test_a_part_of_a_run_writes_nothing(readme: Path, why: str) -> None:
    run = Run(readme)
    if why == "not collected":  # as with other paths
        run.items = run.items[5:]
    if why == "one test":
        run.config.args = ["tests/models/test_tiny.py::test_x"]
    names = run.collect()
    for name in names[1:] if why == "left out" else names:
        first = name == names[0]
        if first and why == "skipped":
            run.report(name, when="setup", passed=False)
        else:
            run.report(name, passed=not (first and why == "failed"))
    assert run.finish(failed=int(why == "teardown")) != 0
    assert readme.read_text(encoding="utf-8") == TEXT
    assert "stays as it is" in run.writer.said


def test_measurements_know_the_model() -> None:
    found = families.measurement(DATA / "glm4" / "hf", 1e-6, "card")
    assert found[:4] == ("glm4", "safetensors", "glm4.hf", False)
    assert (found.types, found.backend, found.adapter) == (("F16",), "WebGPU", "card")
    found = families.measurement(DATA / "llama-q" / "llama-q.q8_0.gguf", 1e-6)
    assert found[:4] == ("llama", "GGUF", "llama-q.q8_0", False)
    assert (found.types, found.backend, found.adapter) == (("Q8_0",), "NumPy", "")
