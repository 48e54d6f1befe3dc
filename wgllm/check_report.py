"""What a check found, as a table and as the report that a user sends."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wgllm import __version__
from wgllm.check import Verdict
from wgllm.errors import printable
from wgllm.formats.model_file import ModelFile


@dataclass
class Row:
    """All checks of an operator with one format."""

    op: str
    format: str | None
    tolerance: float
    checks: int = 0
    failed: int = 0
    error: float = 0.0
    """The worst."""
    largest: tuple[int, ...] = ()
    """The shape of the largest result."""

    def add(self, verdict: Verdict) -> None:
        self.checks += 1
        self.failed += not verdict.ok
        self.error = max(self.error, verdict.error)
        if not self.largest or math.prod(verdict.output) > math.prod(self.largest):
            self.largest = verdict.output


class Summary:
    """Verdicts by operator and format, in the order in which they came first."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str | None], Row] = {}

    @property
    def count(self) -> int:
        return sum(row.checks for row in self.rows.values())

    def add(self, verdict: Verdict) -> None:
        key = (verdict.op, verdict.format)
        self.rows.setdefault(key, Row(*key, verdict.tolerance)).add(verdict)

    def table(self) -> Iterator[str]:
        """Lines of text, with their heading."""
        head = ("operator", "format", "checks", "largest result", "worst error", "allowed", "verdict")
        lines = [head]
        for row in sorted(self.rows.values(), key=lambda r: (r.op, r.format or "")):
            lines.append((
                row.op, row.format or "", str(row.checks), "×".join(map(str, row.largest)),
                f"{row.error:.2g}", f"{row.tolerance:.2g}", f"{row.failed} DIFFER" if row.failed else "ok",
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            texts = [
                f"{t:>{w}}" if 1 < i < 6 else f"{t:<{w}}"
                for i, (t, w) in enumerate(zip(line, widths, strict=True))
            ]
            yield "  ".join(texts).rstrip()


@dataclass
class Report:
    """A whole check: of kernels, and perhaps of a model."""

    adapter: Mapping[str, Any]
    """Facts of the adapter, and the limits and features that it was opened with."""
    model: Mapping[str, Any] | None = None
    summary: Summary = field(default_factory=Summary)
    verdicts: list[tuple[str, Verdict]] = field(default_factory=list)
    """Each with the name of its case, or of the model."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """What could not be run, and why."""

    def add(self, case: str, verdict: Verdict) -> None:
        self.verdicts.append((case, verdict))
        self.summary.add(verdict)

    @property
    def failures(self) -> list[tuple[str, Verdict]]:
        return [(case, verdict) for case, verdict in self.verdicts if not verdict.ok]

    @property
    def complaint(self) -> str | None:
        """What is wrong, in one line: the first node that differs, else what could not be run."""
        if failures := self.failures:
            case, verdict = failures[0]
            return f"{printable(case)}: {verdict} ({len(failures)} of {self.summary.count} checks differ)"
        if self.problems:
            case, problem = self.problems[0]
            return f"{printable(case)} could not be run: {problem}"
        return None

    def to_json(self) -> dict[str, Any]:
        """As data for ``json.dumps``."""
        failures = self.failures
        return {
            "wgllm": __version__,
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
            "system": platform.platform(),
            "wgpu": _version("wgpu"),
            "numpy": _version("numpy"),
            "adapter": dict(self.adapter),
            "model": self.model,
            "ok": self.complaint is None,
            "checks": self.summary.count,
            "first_failure": _row(*failures[0]) if failures else None,
            "problems": [{"case": case, "problem": problem} for case, problem in self.problems],
            "summary": [
                {
                    "op": row.op,
                    "format": row.format,
                    "checks": row.checks,
                    "failed": row.failed,
                    "largest": row.largest,
                    "error": _number(row.error),
                    "tolerance": row.tolerance,
                }
                for row in self.summary.rows.values()
            ],
            "verdicts": [_row(case, verdict) for case, verdict in self.verdicts],
        }


def model_facts(file: ModelFile) -> dict[str, Any]:
    """Which file was checked."""
    formats = Counter(t.format.name for t in file.tensors.values())
    name = file.metadata.get("general.name")
    return {
        "file": printable(file.path.name),
        "name": printable(name) if isinstance(name, str) else None,
        "architecture": printable(file.architecture),
        "bytes": sum(t.nbytes for t in file.tensors.values()),
        "tensors": dict(sorted(formats.items())),
    }


def _row(case: str, verdict: Verdict) -> dict[str, Any]:
    """A verdict; where its worst element is, only if it is too far off."""
    row: dict[str, Any] = {
        "case": case,
        "layer": verdict.layer,
        "node": verdict.name,
        "op": verdict.op,
        "format": verdict.format,
        "inputs": verdict.inputs,
        "output": verdict.output,
        "error": _number(verdict.error),
        "tolerance": verdict.tolerance,
        "ok": verdict.ok,
    }
    if not verdict.ok:
        row |= {"index": verdict.index, "got": _number(verdict.got), "want": _number(verdict.want)}
    return row


def _number(x: float | None) -> float | str | None:
    """JSON has no infinities and NaNs: those become text."""
    return x if x is None or math.isfinite(x) else str(x)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
