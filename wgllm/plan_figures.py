"""What a plan takes and does, in numbers: memory, dispatches, and the bytes and multiplications of a step.

Bytes are counted by what the dispatches bind: each counts every byte that it touches once, however many of its
invocations ask for it. A product reads its whole matrix, or of a mixture's the experts that its rows can choose (in
several shards: that share of each), an embedding one row for each row of the step, attention the cells that its
schedule sees, whatever they hold; all else that is bound is activations.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

from wgllm.graph import Graph
from wgllm.plan import Dispatch, Fill, Plan, Region, Role, Schedule, State, Width
from wgllm.quant import format_by_name
from wgllm.quant.state_words import state_layout

ROPE_TABLES = "rope tables"
"""What stands in place of a format for tables that no file holds."""


@dataclass(frozen=True)
class RoleBytes:
    """The buffers of a role."""

    role: Role
    buffers: int
    bytes: int


@dataclass(frozen=True)
class FormatBytes:
    """The weights of a format of the file."""

    format: str
    tensors: int
    bytes: int
    """In the plan, as shaders read them."""
    file_bytes: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of buffers that dispatches touch."""

    products: int = 0
    """Matrices, whole; of mixtures of experts those that are chosen."""
    embedding: int = 0
    """The rows of the table that are looked up."""
    parameters: int = 0
    """Norms, biases, and the turns of rope."""
    kv: int = 0
    """Keys and values that attention reads."""
    positions: int = 0
    """Which position each cell holds."""
    written: int = 0
    """State: the cells of the step's rows."""
    activations: int = 0
    """What passes between dispatches, inputs and outputs: read and written."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def read(self) -> int:
        """Of what lies in memory when a step begins: weights and state."""
        return self.products + self.embedding + self.parameters + self.kv + self.positions

    @property
    def all(self) -> int:
        return self.read + self.written + self.activations


@dataclass(frozen=True)
class ScheduleFigures:
    """A body or a tail."""

    width: Width
    dispatches: int
    per_layer: tuple[int, int]
    """The fewest and the most dispatches of a layer; 0, 0 without layers."""
    kernels: int
    """Different ones."""
    traffic: Traffic
    multiplications: int


@dataclass(frozen=True)
class KernelFigures:
    """The kernels of a name for a format, which differ in sizes alone."""

    entry: str
    format: str
    """Of the matrix or of the state that it reads or writes (``q8_0/f16`` where keys and values differ); empty for
    activations only."""
    kernels: int
    dispatches: int
    workgroups: int
    weight_bytes: int
    kv_bytes: int
    multiplications: int


@dataclass(frozen=True)
class DispatchFigures:
    """One launch."""

    entry: str
    format: str
    """As in ``KernelFigures``."""
    bytes: int
    """All that it touches."""
    multiplications: int


@dataclass(frozen=True)
class TokenFigures:
    """What making one token takes: a body and a tail of one row."""

    pos: int
    """How many positions the context holds with this one."""
    traffic: Traffic
    multiplications: int
    packed_weights: int
    """Bytes of the matrices, and chosen experts, that products read, each once: no token takes fewer."""
    kv: int
    """Bytes of the keys and values that the token sees: no more positions than there are, or than a window has."""

    @property
    def least(self) -> int:
        return self.packed_weights + self.kv

    @property
    def read_ratio(self) -> float:
        """Weights and state that are read, as a multiple of ``least``."""
        return self.traffic.read / self.least if self.least else 0.0

    @property
    def ratio(self) -> float:
        """All bytes, activations too."""
        return self.traffic.all / self.least if self.least else 0.0


class PlanFigures:
    """The figures of a plan and of the graph that it was lowered from."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        self.plan = plan
        self.graph = graph
        self._fills = sorted(plan.fills, key=lambda f: f.region)
        self._states = {(s.region.buffer, s.region.offset): (name, s) for name, s in plan.states.items()}

    def memory(self) -> list[RoleBytes]:
        """One entry for each role, empty ones too."""
        roles: tuple[Role, ...] = ("weights", "state", "input", "scratch")
        return [
            RoleBytes(role, sum(b.role == role for b in self.plan.buffers), self.plan.size_of(role))
            for role in roles
        ]

    def weights(self) -> list[FormatBytes]:
        """By format, the largest first. Factors of rope, which the plan has as part of its tables, count there."""
        tensors: dict[str, set[str]] = {}
        sizes: Counter[str] = Counter()
        for fill in self.plan.fills:
            kind = self._format(fill)
            names = tensors.setdefault(kind, set())
            names.update(r.tensor for r in fill.rows)
            sizes[kind] += fill.region.size
        return [
            FormatBytes(kind, len(tensors[kind]), size, sum(map(self._file_bytes, tensors[kind])))
            for kind, size in sizes.most_common()
        ]

    def schedule(self, width: Width, schedule: Schedule) -> ScheduleFigures:
        """Of the plan's ``schedule`` for ``width``."""
        layers = Counter(self.plan.nodes[d.node].layer for d in schedule)
        del layers[None]
        return ScheduleFigures(
            width,
            len(schedule),
            (min(layers.values(), default=0), max(layers.values(), default=0)),
            len({d.kernel for d in schedule}),
            self._traffic((width, d) for d in schedule),
            sum(d.cost for d in schedule),
        )

    def kernels(self, schedules: Iterable[tuple[Width, Schedule]]) -> list[KernelFigures]:
        """Of all ``schedules`` together; those that read the most come first, among equals those that multiply."""
        groups: dict[tuple[str, str], list[tuple[Width, Dispatch]]] = {}
        for width, schedule in schedules:
            for d in schedule:
                key = (self.plan.kernels[d.kernel].entry, self._format_of(d))
                groups.setdefault(key, []).append((width, d))
        made = []
        for (entry, kind), launches in groups.items():
            traffic = self._traffic(launches)
            made.append(
                KernelFigures(
                    entry,
                    kind,
                    kernels=len({d.kernel for _, d in launches}),
                    dispatches=len(launches),
                    workgroups=sum(d.groups for _, d in launches),
                    weight_bytes=traffic.products + traffic.embedding + traffic.parameters,
                    kv_bytes=traffic.kv,
                    multiplications=sum(d.cost for _, d in launches),
                )
            )
        return sorted(made, key=lambda k: (-k.weight_bytes - k.kv_bytes, -k.multiplications, k.entry))

    def dispatch(self, width: Width, d: Dispatch) -> DispatchFigures:
        """Of a dispatch of the plan's schedule for ``width``."""
        return DispatchFigures(
            self.plan.kernels[d.kernel].entry, self._format_of(d), self._traffic([(width, d)]).all, d.cost
        )

    def decode(self, pos: int) -> list[tuple[Width, Schedule]]:
        """The schedules that make the token at the end of ``pos`` positions. Raises PlanError."""
        parts = [self.plan.schedule("body", 1, pos)]
        if any(n.part == "tail" for n in self.plan.nodes):
            parts.append(self.plan.schedule("tail", 1))
        return parts

    def token(self, pos: int) -> TokenFigures:
        """What the token at the end of ``pos`` positions takes. Raises PlanError."""
        launches = [(width, d) for width, schedule in self.decode(pos) for d in schedule]
        matrices = {
            fill.region: self._read_of(fill.region, d, width)
            for width, d in launches
            for fill in map(self._fill, d.bindings)
            if fill is not None and fill.kind == "packed" and not self._looks_up(d)
        }
        kv = 0
        for name, state in self.plan.states.items():
            if state.kv_type != "i32":
                window = self.graph.windows[str(self.graph.tensors[name].shape[2])]
                kv += min(pos, window or pos) * _cell_bytes(state)
        return TokenFigures(
            pos, self._traffic(launches), sum(d.cost for _, d in launches), sum(matrices.values()), kv
        )

    # Dispatches

    def _traffic(self, launches: Iterable[tuple[Width, Dispatch]]) -> Traffic:
        total = Traffic()
        for width, d in launches:
            for region in d.bindings:
                total += self._touched(region, d, width)
        return total

    def _touched(self, region: Region, d: Dispatch, width: Width) -> Traffic:
        """What a dispatch touches of one binding."""
        fill = self._fill(region)
        if fill is not None:
            if fill.kind == "rope":
                return Traffic(parameters=4 * fill.dim * width.rows)
            if fill.kind == "numbers":
                return Traffic(parameters=region.size)
            if self._looks_up(d):  # in one of the shards; which one, the tokens say
                (rows,) = fill.rows
                row = region.size // (rows.last - rows.first)
                return Traffic(embedding=0 if rows.first else row * width.rows)
            return Traffic(products=self._read_of(region, d, width))
        held = self._state(region)
        if held is not None:
            name, state = held
            cell = _cell_bytes(state)
            if name in self.plan.nodes[d.node].outputs:
                return Traffic(written=cell * width.rows)
            seen = cell * min(_cells(state), width.cells)
            return Traffic(positions=seen) if state.kv_type == "i32" else Traffic(kv=seen)
        if self.plan.nodes[d.node].op == "select_rows":  # of all rows that it is shown
            return Traffic(activations=min(region.size, d.bindings[-1].size))
        return Traffic(activations=region.size)

    def _read_of(self, region: Region, d: Dispatch, width: Width) -> int:
        """Bytes of a matrix, or of experts, that a dispatch reads."""
        return math.ceil(region.size * self.graph.share_read(self.graph.nodes[d.node], width.rows))

    def _looks_up(self, d: Dispatch) -> bool:
        return self.plan.nodes[d.node].op == "embed"

    def _fill(self, region: Region) -> Fill | None:
        """What is filled where ``region`` lies: biases of a shard are a part of it."""
        at = bisect_right(self._fills, region[:2], key=lambda f: f.region[:2]) - 1
        fill = self._fills[at] if at >= 0 else None
        if fill is None or fill.region.buffer != region.buffer:
            return None
        return fill if region.offset < fill.region.offset + fill.region.size else None

    def _state(self, region: Region) -> tuple[str, State] | None:
        return self._states.get((region.buffer, region.offset))

    # Formats

    def _format_of(self, d: Dispatch) -> str:
        """The matrix's if a dispatch has one, else that of its keys and values."""
        states = []
        for region in d.bindings:
            fill = self._fill(region)
            if fill is not None and fill.kind == "packed":
                return self._format(fill)
            held = self._state(region)
            if held is not None and held[1].kv_type != "i32":
                states.append(held[1].kv_type)
        return "/".join(dict.fromkeys(states))

    def _format(self, fill: Fill) -> str:
        if fill.kind == "rope":
            return ROPE_TABLES
        return format_by_name(self.graph.tensors[fill.rows[0].tensor].dtype).name

    def _file_bytes(self, name: str) -> int:
        tensor = self.graph.tensors[name]
        *rows, width = (d for d in tensor.shape if isinstance(d, int))
        return math.prod(rows) * format_by_name(tensor.dtype).row_bytes(width)


def _cells(state: State) -> int:
    """Positions that there is room for."""
    return state.shape[1] if state.kv_type == "i32" else state.shape[2]


def _cell_bytes(state: State) -> int:
    """What one slot keeps of one position."""
    if state.kv_type == "i32":
        return 4
    layout = state_layout(state.kv_type, 1, state.shape[-1])
    return 4 * state.shape[1] * (layout.numbers_per_cell + layout.scales_per_cell)
