"""README.md's tables of what was compared with references: measured by a test run, written by ``--write-families``.

Tests that compare logits with references take the fixture ``measured`` and tell it what they found. With the option
these tests alone run. When all of them have passed, and no model was left out, what stands in README.md between the
markers is replaced; a run of some of them writes nothing.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tiny import ALL, DATA, DIRECTORIES, Tiny
from wgllm.models.opening import open_model
from wgllm.quant import format_by_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README = Path(__file__).parents[1] / "README.md"
PROPERTY = "logits"
BACKENDS = ("NumPy", "WebGPU")
KINDS = ("GGUF", "safetensors")
NONE = "–"
# References have five digits after the point: no smaller error can be seen.
STEPS = [f"{digit}e-{power}" for power in (5, 4, 3, 2, 1) for digit in (1, 2, 5)]


class Measured(NamedTuple):
    """How far some logits of a model were from the reference."""

    architecture: str
    kind: str
    model: str
    real: bool
    """A model of the catalogue; others are tiny and random."""
    types: tuple[str, ...]
    """Of its matrices."""
    backend: str
    adapter: str
    """Empty for NumPy."""
    worst: float


@cache
def _facts(path: Path) -> tuple[str, tuple[str, ...]]:
    file = open_model(path)
    types = {t.format.name for t in file.tensors.values() if len(t.shape) > 1}
    architecture = file.architecture
    file.close()
    return architecture, tuple(sorted(types))


def measurement(path: Path, worst: float, adapter: str = "") -> Measured:
    """Of the model at ``path``, on NumPy if there is no ``adapter``."""
    architecture, types = _facts(path)
    kind = KINDS[path.is_dir()]
    real = not path.is_relative_to(DATA)
    name = path.stem if real else Tiny(path, path).id
    backend = BACKENDS[bool(adapter)]
    return Measured(architecture, kind, name, real, types, backend, adapter, float(worst))


def names() -> dict[str, str]:
    """Architecture → what people call its models, as the catalogue has it."""
    catalog = tomllib.loads(files("wgllm.models").joinpath("catalog.toml").read_text(encoding="utf-8"))
    found: dict[str, str] = catalog["runs"]
    return found


def tiny_models() -> dict[tuple[str, str], set[str]]:
    """(architecture, kind) → the reference models there are."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for model in (*ALL, *DIRECTORIES):
        found[_facts(model.path)[0], KINDS[model.path.is_dir()]].add(model.id)
    return found


# The tables


def rounded_up(worst: float) -> str:
    """To 1, 2 or 5 times a power of ten, so that another run says the same."""
    return next(step for step in STEPS if worst <= float(step))


def _cell(found: Sequence[Measured]) -> str:
    return f"≤ {rounded_up(max(m.worst for m in found))}" if found else NONE


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"|{'|'.join(f' {c} ' if c != '---' else c for c in line)}|\n" for line in lines)


def _joined(values: Iterable[str]) -> str:
    return ", ".join(values)


def families_table(found: Iterable[Measured]) -> str:
    """A row for each architecture; in brackets the number of models."""
    tiny = [m for m in found if not m.real]
    cells: dict[tuple[str, ...], list[Measured]] = defaultdict(list)
    for m in tiny:
        cells[m.architecture, m.kind, m.backend].append(m)
    columns = [(kind, backend) for kind in KINDS for backend in BACKENDS]
    rows = []
    for architecture, name in sorted(names().items()):
        row = [f"`{architecture}`", name]
        for kind, backend in columns:
            of = cells[architecture, kind, backend]
            row.append(_cell(of) + (f" ({len({m.model for m in of})})" if of else ""))
        rows.append(row)
    types = sorted({t for m in tiny for t in m.types}, key=lambda t: format_by_name(t).type_id)
    adapters = sorted({m.adapter for m in tiny if m.adapter})
    head = ["architecture", "models", *(f"{kind}, {backend}" for kind, backend in columns)]
    ran = f"Types of their weights: {_joined(types)}. WebGPU ran on {_joined(adapters)}."
    return f"{_table(head, rows)}\n{ran}\n"


def real_table(found: Iterable[Measured]) -> str:
    """A row for each model of the catalogue."""
    real = [m for m in found if m.real]
    rows = [
        [name, *(_cell([m for m in real if (m.model, m.backend) == (name, b)]) for b in BACKENDS)]
        for name in sorted({m.model for m in real})
    ]
    return _table(["file", *BACKENDS], rows)


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by pytest --write-families -->\n", f"<!-- end of {name} -->\n"


def written(text: str, name: str) -> str:
    """What stands between the markers of a table."""
    begin, end = markers(name)
    assert text.count(begin) == text.count(end) == 1, f"README.md should have the markers of {name} once"
    return text.partition(begin)[2].partition(end)[0]


def replaced(text: str, name: str, table: str) -> str:
    old, (begin, end) = written(text, name), markers(name)
    return text.replace(begin + old + end, f"{begin}\n{table}\n{end}")


# The run


class Writer:
    """The plugin that ``--write-families`` registers."""

    def __init__(self, readme: Path, *, real: bool) -> None:
        """``real`` says that models of the catalogue are measured, too; without, their table stays."""
        self.readme = readme
        self.real = real
        self.wanted: set[str] = set()
        self.passed: set[str] = set()
        self.found: list[Measured] = []
        self.said = ""

    @pytest.hookimpl(tryfirst=True)  # before -k and others leave tests out
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [i for i in items if "measured" in i.fixturenames]  # type: ignore[attr-defined]
        chosen = [i for i in chosen if self.real or i.get_closest_marker("model") is None]
        config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
        self.wanted = {i.nodeid for i in chosen}
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
            self.found += [Measured(*value) for name, value in report.user_properties if name == PROPERTY]

    def problem(self) -> str | None:
        """Why the run says too little, if it does."""
        if left := self.wanted - self.passed:
            return f"{len(left)} tests did not pass, as {min(left)}"
        found = {(m.model, m.backend) for m in self.found}
        everything = {(model.id, backend) for model in (*ALL, *DIRECTORIES) for backend in BACKENDS}
        if left_out := everything - found:
            return f"{_joined(min(left_out))} was left out"
        return None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        problem = "tests failed" if session.testsfailed else self.problem()
        if any("::" in argument for argument in session.config.args):
            problem = "these are not all tests"
        if problem is not None:
            self.said = f"{self.readme.name} stays as it is: {problem}"
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
            return
        text = replaced(self.readme.read_text(encoding="utf-8"), "families", families_table(self.found))
        if self.real:
            text = replaced(text, "real models", real_table(self.found))
        self.readme.write_text(text, encoding="utf-8")
        self.said = f"{self.readme.name} is written"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.said)
