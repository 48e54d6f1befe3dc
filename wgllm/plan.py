"""A plan: what a graph becomes for one set of WebGPU limits. Plain data; it knows no model and no wgpu.

A plan names buffers, what fills them, shaders, and per width of step a *schedule*: the dispatches in order. Whoever
replays it (``wgllm.backends.webgpu``, or ``runtime.js`` in a browser) needs the plan, the packed weights and a step's
inputs. ``wgllm.lowering`` makes plans.

A step's rows run in a schedule of at least as many: the others are padding (position -1, slot 0), which is computed
and thrown away but never written to the state. A step has a body, and a tail for the rows that get logits; the tail
may run several times, a few of those rows each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Literal, NamedTuple

from wgllm.wgsl import Host, Source

VERSION = 2

ALIGNMENT = 256
"""Offsets of bindings are multiples of this many bytes on every device."""

Role = Literal["weights", "state", "input", "scratch"]
Part = Literal["body", "tail", "greedy", "draw"]
"""Of a step, which has a body and perhaps tails; and of the choice of the next token, see ``Sampling``."""


class PlanError(ValueError):
    """A graph that can't be planned for a device: what is too large, or has no shader."""


@dataclass(frozen=True)
class Limits:
    """What a device allows a plan; the defaults are what every WebGPU device allows."""

    buffer: int = 256 << 20
    """Bytes of a buffer."""
    binding: int = 128 << 20
    """Bytes of a buffer that a shader sees at once."""
    bindings: int = 8
    """Storage buffers of a shader."""
    workgroup_memory: int = 16384
    invocations: int = 256
    """Per workgroup."""
    workgroups: int = 65535
    """Per dispatch, in one dimension."""

    @staticmethod
    def of(limits: Mapping[str, int]) -> Limits:
        """From a device's limits under WebGPU's names with hyphens."""
        return Limits(
            buffer=limits["max-buffer-size"],
            binding=limits["max-storage-buffer-binding-size"],
            bindings=limits["max-storage-buffers-per-shader-stage"],
            workgroup_memory=limits["max-compute-workgroup-storage-size"],
            invocations=min(
                limits["max-compute-invocations-per-workgroup"], limits["max-compute-workgroup-size-x"]
            ),
            workgroups=limits["max-compute-workgroups-per-dimension"],
        )


@dataclass(frozen=True)
class Buffer:
    name: str
    size: int
    """Bytes, a multiple of 16."""
    role: Role


class Region(NamedTuple):
    """A part of a buffer, as a binding sees it."""

    buffer: int
    """Its index in the plan."""
    offset: int
    """Bytes, a multiple of ALIGNMENT."""
    size: int
    """Bytes, a multiple of 16."""


class Rows(NamedTuple):
    """Rows ``first:last`` of a tensor; of one with a single dimension, numbers."""

    tensor: str
    first: int
    last: int


@dataclass(frozen=True)
class Fill:
    """What a region of the weights holds before the first step. Packed files hold the fills in order."""

    region: Region
    kind: Literal["packed", "numbers", "rope"]
    """Rows as shaders read their format; numbers as float32; the cosines and sines of rope."""
    rows: tuple[Rows, ...]
    """On top of each other, all of one format. For rope: its frequency factors, where there are any."""
    positions: int = 0
    """Of rope's table; so are the others."""
    theta: float = 0.0
    dim: int = 0
    scale: float = 1.0
    magnitude: float = 1.0


@dataclass(frozen=True)
class Kernel:
    """A shader to compile."""

    source: Source
    entry: str


@dataclass(frozen=True)
class Dispatch:
    """One launch of a kernel."""

    kernel: int
    bindings: tuple[Region, ...]
    """Of group 0, by binding number."""
    groups: int
    """Workgroups, in x."""
    node: int
    """Which of the plan's nodes it computes, perhaps with others."""
    cost: int
    """Multiplications, about: long lists are cut by it into submissions."""


Schedule = tuple[Dispatch, ...]


class Width(NamedTuple):
    """What a schedule is made for."""

    part: Part
    rows: int
    """Of the step, or for a tail those that get logits."""
    cells: int = 0
    """For a body: positions are below this, so that attention looks at no more cells."""


@dataclass(frozen=True)
class PlannedNode:
    """What a dispatch computes, for messages and for checks against NumPy."""

    op: str
    outputs: tuple[str, ...]
    regions: tuple[Region, ...]
    """Where the outputs are when it has run, for the widest step; until another node takes the place."""
    layer: int | None
    part: Part


@dataclass(frozen=True)
class Value:
    """An input or an output of the plan: one row of ``row`` bytes for each row of its part."""

    region: Region
    """For the most rows."""
    row: int
    part: Part
    dtype: Literal["f32", "i32"]
    pad: int = 0
    """What rows of padding hold."""


@dataclass(frozen=True)
class State:
    """State that is kept between steps: positions of cells (``i32`` [S, C]; -1 at first, where a cell holds none), or
    keys or values [S, Hkv, C, D] (0 at first)."""

    region: Region
    kv_type: str
    """``i32`` for positions, else the type of the KV state."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How steps of one row follow on each other without the host.

    After the body and the tail of a step, part ``greedy`` or ``draw`` chooses the next token, writes it to the input
    ``token`` and adds 1 to the input ``pos``: the next step's are ready.
    """

    request: Region
    """Written before the first ``draw``, which counts its steps there: ``wgllm.sampler_words``."""
    taken: Region
    """i32 [2]: the token that was chosen, and 1 if a logit was a NaN or an infinity."""


@dataclass
class Plan:
    """Everything there is to replay. Schedules of further widths are lowered when they are asked for, if ``lower``."""

    limits: Limits
    host: Host
    buffers: list[Buffer]
    fills: list[Fill]
    nodes: list[PlannedNode]
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    states: dict[str, State]
    rows: int
    """The most rows of a step."""
    out_rows: int
    """The most rows of a tail."""
    cells: int
    """The most positions of a sequence."""
    least_cells: int
    """Schedules for fewer cells are not lowered."""
    kernels: list[Kernel] = field(default_factory=list)
    schedules: dict[Width, Schedule] = field(default_factory=dict)
    sampling: Sampling | None = None
    """None where logits are no output, or tokens no input."""
    lower: Callable[[Width], Schedule] | None = field(default=None, compare=False, repr=False)

    def schedule(self, part: Part, rows: int, cells: int = 0) -> tuple[Width, Schedule]:
        """The narrowest schedule for ``rows`` rows and positions below ``cells``. Raises PlanError for too many."""
        most = self.rows if part == "body" else self.out_rows
        if not 0 < rows <= most or cells > self.cells:
            raise PlanError(f"the plan has no {part} of {rows} rows and {cells} cells")
        if self.lower is not None:
            cells = _round_up(cells, self.least_cells, self.cells) if cells else 0
            wide = Width(part, _round_up(rows, 1, most), cells)
            if wide not in self.schedules:
                self.schedules[wide] = self.lower(wide)
            return wide, self.schedules[wide]
        fitting = [w for w in self.schedules if w.part == part and w.rows >= rows and w.cells >= cells]
        if not fitting:
            raise PlanError(f"the plan has no {part} of {rows} rows and {cells} cells")
        width = min(fitting, key=lambda w: (w.rows, w.cells))
        return width, self.schedules[width]

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        return sum(b.size for b in self.buffers)

    def size_of(self, *roles: Role) -> int:
        return sum(b.size for b in self.buffers if b.role in roles)

    def to_json(self) -> dict[str, Any]:
        """As data for ``json.dumps``; ``from_json`` brings it back, without what lowers further widths."""
        return {
            "version": VERSION,
            "limits": asdict(self.limits),
            "host": self.host,
            "buffers": [asdict(b) for b in self.buffers],
            "fills": [asdict(f) for f in self.fills],
            "nodes": [asdict(n) for n in self.nodes],
            "inputs": {name: asdict(v) for name, v in self.inputs.items()},
            "outputs": {name: asdict(v) for name, v in self.outputs.items()},
            "states": {name: asdict(s) for name, s in self.states.items()},
            "rows": self.rows,
            "out_rows": self.out_rows,
            "cells": self.cells,
            "least_cells": self.least_cells,
            "kernels": [
                {
                    "name": k.source.name,
                    "entry": k.entry,
                    "text": k.source.text,
                    "origin": list(_runs(k.source.origin)),
                }
                for k in self.kernels
            ],
            "sampling": None if self.sampling is None else asdict(self.sampling),
            "schedules": [
                {**w._asdict(), "dispatches": [_dispatch_to_json(d) for d in schedule]}
                for w, schedule in self.schedules.items()
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Raises PlanError for a plan of another version."""
        if data.get("version") != VERSION:
            raise PlanError(f"this is no plan of version {VERSION}")
        return Plan(
            limits=Limits(**data["limits"]),
            host=data["host"],
            buffers=[Buffer(**b) for b in data["buffers"]],
            fills=[
                Fill(**{**f, "region": Region(*f["region"]), "rows": tuple(Rows(*r) for r in f["rows"])})
                for f in data["fills"]
            ],
            nodes=[
                PlannedNode(
                    n["op"],
                    tuple(n["outputs"]),
                    tuple(Region(*r) for r in n["regions"]),
                    n["layer"],
                    n["part"],
                )
                for n in data["nodes"]
            ],
            inputs={k: Value(**{**v, "region": Region(*v["region"])}) for k, v in data["inputs"].items()},
            outputs={k: Value(**{**v, "region": Region(*v["region"])}) for k, v in data["outputs"].items()},
            states={
                k: State(Region(*s["region"]), s["kv_type"], tuple(s["shape"]))
                for k, s in data["states"].items()
            },
            rows=data["rows"],
            out_rows=data["out_rows"],
            cells=data["cells"],
            least_cells=data["least_cells"],
            kernels=[
                Kernel(Source(k["text"], tuple(_lines(k["origin"])), k["name"]), k["entry"])
                for k in data["kernels"]
            ],
            sampling=None
            if data["sampling"] is None
            else Sampling(**{k: Region(*r) for k, r in data["sampling"].items()}),
            schedules={
                Width(s["part"], s["rows"], s["cells"]): tuple(
                    Dispatch(kernel, tuple(Region(*r) for r in bindings), groups, node, cost)
                    for kernel, bindings, groups, node, cost in s["dispatches"]
                )
                for s in data["schedules"]
            },
        )


def in_bytes(n: int) -> str:
    """A size for people, in the largest unit of which it has at least one."""
    unit, size = ("MiB", 1 << 20) if n >= 1 << 20 else ("KiB", 1 << 10) if n >= 1 << 10 else ("bytes", 1)
    return f"{n / size:,.0f} {unit}"


def step_widths(most: int) -> Iterator[int]:
    """Rows, or cells, that schedules may be made for in a plan for ``most``: powers of two, and ``most``."""
    yield from (1 << i for i in range((most - 1).bit_length()))
    yield most


def _round_up(n: int, least: int, most: int) -> int:
    """The next power of two, between ``least`` and ``most``."""
    return min(most, max(least, 1 << (n - 1).bit_length()))


def _dispatch_to_json(d: Dispatch) -> list[Any]:
    return [d.kernel, [list(r) for r in d.bindings], d.groups, d.node, d.cost]


def _runs(origin: tuple[tuple[str, int], ...]) -> Iterator[list[Any]]:
    """Where lines come from, as [file, first line, number of lines]."""
    for (file, _), run in groupby(enumerate(origin), key=lambda item: (item[1][0], item[1][1] - item[0])):
        lines = [number for _, (_, number) in run]
        yield [file, lines[0], len(lines)]


def _lines(runs: list[list[Any]]) -> Iterator[tuple[str, int]]:
    for file, first, count in runs:
        yield from ((file, number) for number in range(first, first + count))
