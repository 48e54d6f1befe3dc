"""Lowering: Graph → Plan. Which buffers there are, who shares them, and which shaders compute a node.

Weights lie in a few arenas, packed, in shards of rows that a binding can hold. A temporary takes a whole scratch
buffer for as long as someone reads it (a buffer can't be read and written in one dispatch, not even in two places).
Everything but the dispatches is decided once, for the widest step; a schedule of any width then fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from wgllm.graph import OUT_ROWS, ROWS, Graph, Node, Tensor
from wgllm.ops import Dim, Shape
from wgllm.plan import (
    ALIGNMENT,
    Buffer,
    Dispatch,
    Fill,
    Kernel,
    Limits,
    Part,
    Plan,
    PlanError,
    PlannedNode,
    Region,
    Role,
    Schedule,
    State,
    Value,
    Width,
    in_bytes,
)
from wgllm.quant import QuantFormat, format_by_name
from wgllm.quant.packing import Layout
from wgllm.quant.state_words import state_layout
from wgllm.wgsl import Constant, Host, compose

# Weights share buffers of about this size: small enough that memory in pieces will do.
_ARENA = 256 << 20
# Shaders count numbers in 32 bits.
_LARGEST_BINDING = 1 << 30
_LARGEST_COUNT = 1 << 32
# Logits of this many bytes are made at a time.
_LOGITS_BYTES = 16 << 20
# Scratch of one temporary, which of attention's scores decides how many rows a step may have.
_LARGEST_TEMPORARY = 64 << 20
# Products of more rows than this are computed in tiles.
_FEW_ROWS = 4
_TILE = 32
_WORKGROUP = 64
# Attention over fewer cells than this is not worth a schedule of its own.
_LEAST_CELLS = 256


@dataclass(frozen=True)
class PlanOptions:
    """What a graph is planned for."""

    sizes: Mapping[str, int]
    """Values of the graph's named sizes: ``slots`` and the cell counts."""
    positions: int
    """The most positions of a sequence."""
    rows: int
    """The most rows of a step."""
    kv_type_of: Callable[[str], str] = lambda state: "f32"
    """The KV type of a state tensor, by its name."""
    limits: Limits = field(default_factory=Limits)
    host: Host = "naga"


def lower(graph: Graph, options: PlanOptions) -> Plan:
    """The plan of a graph, without schedules: they are lowered when a width is asked for.

    Raises PlanError for what the limits do not allow, and for operators that have no shader.
    """
    return _Lowering(graph, options).plan


def has_shader(node: Node) -> bool:
    return node.op in _SHADERS


def widest_step(graph: Graph, options: PlanOptions) -> int:
    """The most rows, halving ``options.rows``, whose temporaries stay small enough. At least 1."""
    room = min(options.limits.binding, options.limits.buffer, _LARGEST_TEMPORARY)
    per_row = max(
        4 * _count(t.shape, {**options.sizes, ROWS: 1, OUT_ROWS: 0})
        for t in graph.tensors.values()
        if t.kind in ("temp", "output")
    )
    rows = options.rows
    while rows > 1 and rows * per_row > room:
        rows = (rows + 1) // 2
    return rows


@dataclass(frozen=True)
class _Shard:
    """Rows ``first : first + count`` of a weight, packed."""

    region: Region
    first: int
    count: int
    layout: Layout


class _Lowering:
    def __init__(self, graph: Graph, options: PlanOptions) -> None:
        self.graph = graph
        self.options = options
        self.limits = options.limits
        lacking = sorted({n.op for n in graph.nodes if not has_shader(n)})
        if lacking:
            raise PlanError(f"no shader computes {', '.join(lacking)}")
        self.parts: list[Part] = [self._part(n) for n in graph.nodes]
        self.regions: dict[str, Region] = {}
        """Of every tensor but matrices and temporaries that only rename another: its place, for the widest step."""
        self.renamed: dict[str, str] = {}
        self.shards: dict[str, list[_Shard]] = {}
        self.kernels: dict[object, int] = {}
        self.plan = Plan(
            limits=options.limits,
            host=options.host,
            buffers=[],
            fills=[],
            nodes=[],
            inputs={},
            outputs={},
            states={},
            rows=options.rows,
            out_rows=self._tail_rows(),
            cells=options.positions,
            least_cells=self._least_cells(),
            lower=self.schedule,
        )
        self._place_weights()
        self._place_states()
        self._place_inputs()
        self._place_temporaries()
        self._name_outputs()
        for node, part in zip(graph.nodes, self.parts, strict=True):
            places = tuple(self._widest(o) for o in node.outputs)
            self.plan.nodes.append(PlannedNode(node.op, node.outputs, places, node.layer, part))

    # Sizes

    def _least_cells(self) -> int:
        """Schedules of few cells make scores of few; another segment that gets them expects all."""
        passed = (t for t in self.graph.tensors.values() if t.kind in ("input", "output"))
        whole = any(d in self.graph.windows for t in passed for d in t.shape)
        return self.options.positions if whole else min(_LEAST_CELLS, self.options.positions)

    def _part(self, node: Node) -> Part:
        return "tail" if any(OUT_ROWS in self.graph.tensors[o].shape for o in node.outputs) else "body"

    def _tail_rows(self) -> int:
        """As many as keep the widest result of the tail small."""
        made = [
            o for n, p in zip(self.graph.nodes, self.parts, strict=True) if p == "tail" for o in n.outputs
        ]
        per_row = max((4 * self._numbers(o, Width("tail", 1)) for o in made), default=4)
        return max(1, min(self.options.rows, _LOGITS_BYTES // per_row))

    def _numbers(self, name: str, width: Width) -> int:
        """How many numbers a tensor has in a schedule."""
        return math.prod(self._shape(name, width))

    def _shape(self, name: str, width: Width) -> tuple[int, ...]:
        return tuple(self._dim(d, width) for d in self.graph.tensors[name].shape)

    def _dim(self, d: Dim, width: Width) -> int:
        if isinstance(d, int):
            return d
        if d in (ROWS, OUT_ROWS):
            return width.rows
        return min(self.options.sizes[d], width.cells) if d in self.graph.windows else self.options.sizes[d]

    # Places

    def _new_buffer(self, name: str, size: int, role: Role) -> Region:
        """A buffer for one region alone."""
        size = _up(size, 16)
        most = min(self.limits.buffer, self.limits.binding)
        if size > most:
            raise PlanError(
                f"{name} takes {in_bytes(size)}, of which this device shows a shader {in_bytes(most)} at once"
            )
        self.plan.buffers.append(Buffer(name, size, role))
        return Region(len(self.plan.buffers) - 1, 0, size)

    def _place_weights(self) -> None:
        arena: list[int] = []  # index and bytes used of the one that is being filled

        def place(size: int) -> Region:
            size = _up(size, 16)
            at = _up(arena[1], ALIGNMENT) if arena else 0
            if not arena or at + size > min(_ARENA, self.limits.buffer):
                self.plan.buffers.append(Buffer(f"weights {len(self.plan.buffers)}", 0, "weights"))
                arena[:] = [len(self.plan.buffers) - 1, 0]
                at = 0
            index = arena[0]
            arena[1] = at + size
            self.plan.buffers[index] = Buffer(self.plan.buffers[index].name, arena[1], "weights")
            return Region(index, at, size)

        used = {name for n in self.graph.nodes if n.op != "rope" for name in n.inputs}
        for tensor in self.graph.of_kind("weight"):
            if tensor.name not in used:
                continue  # rope's factors are part of its table
            if len(tensor.shape) == 1:
                (n,) = _ints(tensor.shape)
                self.regions[tensor.name] = place(4 * n)
                self.plan.fills.append(Fill(self.regions[tensor.name], "numbers", tensor.name, 0, 1))
            else:
                self.shards[tensor.name] = list(self._shards(tensor, place))
        for node in self.graph.nodes:
            if node.op == "rope" and _table_name(node) not in self.regions:
                self._place_table(node, place)

    def _shards(self, tensor: Tensor, place: Callable[[int], Region]) -> Iterator[_Shard]:
        rows, width = _ints(tensor.shape)
        fmt = format_by_name(tensor.dtype)
        per_row = width // fmt.block_size
        most = min(self.limits.binding, self.limits.buffer, _LARGEST_BINDING)
        count = min(rows, most // fmt.row_bytes(width), (_LARGEST_COUNT - 1) // width)
        while count and 4 * fmt.layout(count * per_row).size > most:  # the padding of planes
            count -= 1
        if not count:
            raise PlanError(
                f"a row of {tensor.name} is larger than the {in_bytes(most)} that a shader sees at once"
            )
        for first in range(0, rows, count):
            n = min(count, rows - first)
            layout = fmt.layout(n * per_row)
            region = place(4 * layout.size)
            self.plan.fills.append(Fill(region, "packed", tensor.name, first, first + n))
            yield _Shard(region, first, n, layout)

    def _place_table(self, rope: Node, place: Callable[[int], Region]) -> None:
        """cos and sin [positions, dim / 2, 2] of one kind of rope; made by the host, in whose hands float32 is."""
        dim, positions = rope.attrs["dim"], self.options.positions
        size = 4 * positions * dim
        if size > min(self.limits.binding, self.limits.buffer):
            raise PlanError(
                f"rope's table for {positions} positions takes {in_bytes(size)}; a smaller context is needed"
            )
        region = self.regions[_table_name(rope)] = place(size)
        factors = rope.inputs[2] if len(rope.inputs) > 2 else None
        self.plan.fills.append(
            Fill(region, "rope", factors, 0, positions, rope.attrs["theta"], dim, rope.attrs["scale"])
        )

    def _place_states(self) -> None:
        for tensor in self.graph.of_kind("state"):
            shape = tuple(d if isinstance(d, int) else self.options.sizes[d] for d in tensor.shape)
            if tensor.dtype == "i32":
                kv_type, size = "i32", 4 * math.prod(shape)
            else:
                kv_type = self.options.kv_type_of(tensor.name)
                try:
                    size = 4 * state_layout(kv_type, math.prod(shape[:-1]), shape[-1]).size
                except ValueError as error:
                    raise PlanError(str(error)) from None
            region = self._new_buffer(tensor.name, size, "state")
            self.regions[tensor.name] = region
            self.plan.states[tensor.name] = State(region, kv_type, shape)

    def _place_inputs(self) -> None:
        for tensor in self.graph.of_kind("input"):
            part: Part = "tail" if OUT_ROWS in tensor.shape else "body"
            row = 4 * self._numbers(tensor.name, Width(part, 1, self.plan.cells))
            most = self.plan.rows if part == "body" else self.plan.out_rows
            region = self._new_buffer(tensor.name, most * row, "input")
            self.regions[tensor.name] = region
            # A row without a position writes no state.
            pad = -1 if tensor.name == "pos" else 0
            dtype: Literal["f32", "i32"] = "i32" if tensor.dtype == "i32" else "f32"
            self.plan.inputs[tensor.name] = Value(region, row, part, dtype, pad)

    def _place_temporaries(self) -> None:
        """Scratch by liveness: a buffer is free again when nobody reads what it holds."""
        nodes = self.graph.nodes
        for node in nodes:
            if node.op == "reshape":
                self.renamed[node.outputs[0]] = self._root(node.inputs[0])
        last = {self._root(name): i for i, n in enumerate(nodes) for name in n.inputs}
        for tensor in self.graph.of_kind("output"):
            last[self._root(tensor.name)] = len(nodes)
        for node, part in zip(nodes, self.parts, strict=True):
            if part == "tail":  # which may run again
                for name in node.inputs:
                    if self._made_by_body(self._root(name)):
                        last[self._root(name)] = len(nodes)
        free: list[int] = []  # buffers, the one freed last at the end
        for i, (node, part) in enumerate(zip(nodes, self.parts, strict=True)):
            widest = Width(part, self.plan.rows if part == "body" else self.plan.out_rows, self.plan.cells)
            for name in node.outputs:
                if name not in self.regions and name not in self.renamed:
                    self._take_scratch(name, 4 * self._numbers(name, widest), free)
            for name in dict.fromkeys(self._root(n) for n in (*node.inputs, *node.outputs)):
                region = self.regions.get(name)
                if (
                    last.get(name, i) <= i
                    and region is not None
                    and self.plan.buffers[region.buffer].role == "scratch"
                ):
                    free.append(region.buffer)

    def _made_by_body(self, name: str) -> bool:
        return any(
            name in n.outputs for n, p in zip(self.graph.nodes, self.parts, strict=True) if p == "body"
        )

    def _take_scratch(self, name: str, size: int, free: list[int]) -> None:
        """The smallest free buffer that is large enough, else the largest, which grows; else a new one."""
        size = _up(size, 16)
        buffers = self.plan.buffers
        if not free:
            self.regions[name] = self._new_buffer(f"scratch {len(buffers)}", size, "scratch")
            return
        index = min(free, key=lambda b: (buffers[b].size < size, abs(buffers[b].size - size)))
        free.remove(index)
        if buffers[index].size < size:
            region = self._new_buffer(buffers[index].name, size, "scratch")  # for its checks
            buffers[index] = buffers.pop(region.buffer)
        self.regions[name] = Region(index, 0, buffers[index].size)

    def _name_outputs(self) -> None:
        for tensor in self.graph.of_kind("output"):
            part: Part = "tail" if OUT_ROWS in tensor.shape else "body"
            row = 4 * self._numbers(tensor.name, Width(part, 1, self.plan.cells))
            self.plan.outputs[tensor.name] = Value(self._widest(tensor.name), row, part, "f32")

    def _root(self, name: str) -> str:
        return self.renamed.get(name, name)

    def _widest(self, name: str) -> Region:
        return self.regions[self._root(name)]

    # Schedules

    def schedule(self, width: Width) -> Schedule:
        """The dispatches of a body or a tail."""
        made: list[Dispatch] = []
        for i, (node, part) in enumerate(zip(self.graph.nodes, self.parts, strict=True)):
            if part == width.part:
                for launch in _SHADERS[node.op](_Context(self, node, width)):
                    made.append(self._dispatch(launch, i))
        return tuple(made)

    def _dispatch(self, launch: _Launch, node: int) -> Dispatch:
        if len(launch.bindings) > self.limits.bindings:
            raise PlanError(f"{launch.entry} needs {len(launch.bindings)} buffers")
        key = (launch.files, launch.entry, tuple(sorted(launch.constants.items())))
        index = self.kernels.get(key)
        if index is None:
            source = compose(*launch.files, constants=launch.constants, host=self.options.host)
            index = self.kernels[key] = len(self.plan.kernels)
            self.plan.kernels.append(Kernel(source, launch.entry))
        groups = max(1, min(launch.groups, self.limits.workgroups))  # kernels do with any number
        return Dispatch(index, tuple(launch.bindings), groups, node, launch.cost)


@dataclass(frozen=True)
class _Launch:
    """A dispatch before its kernel has a number."""

    files: tuple[str, ...]
    entry: str
    constants: Mapping[str, Constant]
    bindings: Sequence[Region]
    groups: int
    cost: int


class _Context:
    """A node in a schedule: what its shader needs to know."""

    def __init__(self, lowering: _Lowering, node: Node, width: Width) -> None:
        self.lowering = lowering
        self.node = node
        self.width = width

    def shape(self, name: str) -> tuple[int, ...]:
        """As this schedule has it."""
        return self.lowering._shape(name, self.width)

    def numbers(self, name: str) -> int:
        return self.lowering._numbers(name, self.width)

    def region(self, name: str) -> Region:
        """What a binding sees of a tensor: as much as this schedule has, or the whole of a weight or a state."""
        region = self.lowering._widest(name)
        if self.lowering.graph.tensors[name].kind in ("weight", "state"):
            return region
        return Region(region.buffer, region.offset, _up(4 * self.numbers(name), 16))

    def regions(self) -> list[Region]:
        """Of the inputs, then the outputs."""
        return [self.region(name) for name in (*self.node.inputs, *self.node.outputs)]

    def shards(self, name: str) -> tuple[QuantFormat, list[_Shard]]:
        return format_by_name(self.lowering.graph.tensors[name].dtype), self.lowering.shards[name]

    def table(self) -> Region:
        return self.lowering.regions[_table_name(self.node)]

    def state(self, name: str) -> State:
        return self.lowering.plan.states[name]

    def launch(
        self,
        kernel: str,
        constants: Mapping[str, Constant],
        bindings: Sequence[Region],
        *,
        work: int = 0,
        groups: int = 0,
        cost: int = 0,
        entry: str | None = None,
        files: Sequence[str] = (),
    ) -> _Launch:
        """``work`` counts invocations, in place of ``groups``, which counts workgroups."""
        return _Launch(
            (f"kernels/{kernel}.wgsl", *files),
            entry or kernel,
            constants,
            bindings,
            groups or -(-work // _WORKGROUP),
            cost or work,
        )


def _embed(c: _Context) -> Iterator[_Launch]:
    table, token = c.node.inputs
    (out,) = c.node.outputs
    rows, width = c.shape(out)
    fmt, shards = c.shards(table)
    for shard in shards:
        constants = {"ROWS": rows, "WIDTH": width, "COUNT": shard.count, "FIRST": shard.first}
        yield c.launch(
            "embed",
            constants | shard.layout.constants,
            [shard.region, c.region(token), c.region(out)],
            work=rows * (width // 32 + 2),
            cost=rows * width,
            files=[fmt.wgsl],
        )


def _matmul(c: _Context) -> Iterator[_Launch]:
    x, w = c.node.inputs
    (out,) = c.node.outputs
    rows, inputs = c.shape(x)
    outputs = c.shape(out)[1]
    fmt, shards = c.shards(w)
    tiled = rows > _FEW_ROWS and inputs % 32 == 0
    for shard in shards:
        constants = {
            "ROWS": rows,
            "INPUTS": inputs,
            "OUTPUTS": shard.count,
            "OUT_WIDTH": outputs,
            "OUT_FIRST": shard.first,
        }
        groups = -(-rows // _TILE) * -(-shard.count // _TILE) if tiled else 0
        yield c.launch(
            "matmul" if tiled else "matvec",
            constants | shard.layout.constants,
            [shard.region, c.region(x), c.region(out)],
            groups=groups,
            work=rows * shard.count,
            cost=rows * inputs * shard.count,
            files=[fmt.wgsl],
        )


def _select_rows(c: _Context) -> Iterator[_Launch]:
    x, out_rows = c.node.inputs
    (out,) = c.node.outputs
    rows, width = c.shape(out)
    # x was made by the body, whose width a tail does not know: all of its rows.
    bindings = [c.lowering._widest(x), c.region(out_rows), c.region(out)]
    yield c.launch("select_rows", {"OUT_ROWS": rows, "WIDTH": width}, bindings, work=rows * width)


def _elementwise(parameter: str | None = None) -> Callable[[_Context], Iterator[_Launch]]:
    def shader(c: _Context) -> Iterator[_Launch]:
        (x,), (out,) = c.node.inputs, c.node.outputs
        count = c.numbers(out)
        constants: dict[str, Constant] = {"COUNT": count}
        if parameter is not None:
            constants["PARAMETER"] = float(c.node.attrs[parameter])
        yield c.launch("elementwise", constants, [c.region(x), c.region(out)], work=count, entry=c.node.op)

    return shader


def _binary(c: _Context) -> Iterator[_Launch]:
    a, b = c.node.inputs
    (out,) = c.node.outputs
    count = c.numbers(out)
    constants: dict[str, Constant] = {"COUNT": count}
    entry = c.node.op
    if entry == "add" and len(c.shape(b)) < len(c.shape(a)):
        entry = "add_row"
        constants["WIDTH"] = c.shape(b)[0]
    bindings = [c.region(a), c.region(out), c.region(b)]
    yield c.launch("elementwise", constants, bindings, work=count, entry=entry)


def _reshape(c: _Context) -> Iterator[_Launch]:
    yield from ()  # the same buffer under another name


def _norm(*attributes: str) -> Callable[[_Context], Iterator[_Launch]]:
    def shader(c: _Context) -> Iterator[_Launch]:
        *rows, width = c.shape(c.node.outputs[0])
        constants = {"ROWS": math.prod(rows), "WIDTH": width}
        options = {a.upper(): float(c.node.attrs[a]) for a in attributes}
        count = math.prod(rows) * width
        yield c.launch(c.node.op, constants | options, c.regions(), groups=math.prod(rows), cost=4 * count)

    return shader


def _rope(c: _Context) -> Iterator[_Launch]:
    x, pos = c.node.inputs[:2]
    (out,) = c.node.outputs
    rows, heads, head_dim = c.shape(out)
    constants = {
        "ROWS": rows,
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "DIM": c.node.attrs["dim"],
        "INTERLEAVED": c.node.attrs["interleaved"],
    }
    bindings = [c.region(x), c.region(pos), c.table(), c.region(out)]
    yield c.launch("rope", constants, bindings, work=rows * heads * head_dim)


def _cell_write(c: _Context) -> Iterator[_Launch]:
    state, pos, slot = c.node.inputs
    (rows,) = c.shape(pos)
    constants = {"ROWS": rows, "CELLS": c.state(state).shape[1]}
    yield c.launch("cell_write", constants, [c.region(n) for n in (pos, slot, state)], work=rows)


def _kv_write(c: _Context) -> Iterator[_Launch]:
    state, x, pos, slot = c.node.inputs
    kept = c.state(state)
    _, kv_heads, cells, head_dim = kept.shape
    (rows,) = c.shape(pos)
    constants = {"ROWS": rows, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "CELLS": cells}
    kernel = "kv_write"
    if kept.kv_type.startswith("q"):
        kernel = "kv_write_quantized"
        constants["SCALES"] = state_layout(kept.kv_type, math.prod(kept.shape[:-1]), head_dim).scales
    bindings = [c.region(n) for n in (x, pos, slot, state)]
    work = rows * kv_heads * head_dim
    yield c.launch(kernel, constants, bindings, work=work, entry=f"kv_write_{kept.kv_type}")


def _attention(c: _Context) -> Iterator[_Launch]:
    """attn_scores and attn_values, which take the same constants."""
    x, state, slot = c.node.inputs
    (out,) = c.node.outputs
    kept = c.state(state)
    _, kv_heads, cells, head_dim = kept.shape
    scores = c.shape(out if c.node.op == "attn_scores" else x)
    rows, heads, seen = scores
    constants = {
        "ROWS": rows,
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "CELLS": cells,
        "SEEN": seen,
    }
    if kept.kv_type.startswith("q"):
        constants["SCALES"] = state_layout(kept.kv_type, math.prod(kept.shape[:-1]), head_dim).scales
    bindings = [c.region(x), c.region(state), c.region(slot), c.region(out)]
    yield c.launch(
        c.node.op,
        constants,
        bindings,
        work=c.numbers(out),
        cost=math.prod(scores) * head_dim,
        files=[f"kv/{kept.kv_type}.wgsl"],
    )


def _mask(c: _Context) -> Iterator[_Launch]:
    scores, cell_pos, pos, slot = c.node.inputs
    (out,) = c.node.outputs
    rows, heads, seen = c.shape(out)
    constants = {
        "ROWS": rows,
        "HEADS": heads,
        "CELLS": c.state(cell_pos).shape[1],
        "SEEN": seen,
        "WINDOW": c.node.attrs["window"] or 0,
    }
    bindings = [c.region(n) for n in (scores, cell_pos, pos, slot, out)]
    yield c.launch("mask", constants, bindings, work=rows * heads * seen)


_SHADERS: Mapping[str, Callable[[_Context], Iterator[_Launch]]] = {
    "embed": _embed,
    "matmul": _matmul,
    "select_rows": _select_rows,
    "scale": _elementwise("factor"),
    "softcap": _elementwise("cap"),
    "silu": _elementwise(),
    "gelu_tanh": _elementwise(),
    "add": _binary,
    "mul": _binary,
    "reshape": _reshape,
    "rms_norm": _norm("eps", "offset"),
    "layer_norm": _norm("eps"),
    "softmax": _norm(),
    "rope": _rope,
    "cell_write": _cell_write,
    "kv_write": _kv_write,
    "attn_scores": _attention,
    "attn_values": _attention,
    "mask": _mask,
}


def _table_name(rope: Node) -> str:
    """One table for all ropes of a kind."""
    return f"rope {rope.attrs['theta']} {rope.attrs['dim']} {rope.attrs['scale']} {rope.inputs[2:]}"


def _ints(shape: Shape) -> tuple[int, ...]:
    """A weight's shape, which has no names."""
    assert all(isinstance(d, int) for d in shape)
    return shape  # type: ignore[return-value]


def _count(shape: Shape, sizes: Mapping[str, int]) -> int:
    return math.prod(d if isinstance(d, int) else sizes[d] for d in shape)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
