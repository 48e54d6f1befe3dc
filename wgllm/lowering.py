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

from wgllm.expert_launches import EXPERTS
from wgllm.fuse import PASSES, fuse, unfused
from wgllm.fused_launches import FUSED
from wgllm.graph import OUT_ROWS, ROWS, Graph, Node
from wgllm.launches import TEXTBOOK, Context, Launch, Shader, Shard, Stack, format_of
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
    Rows,
    Sampling,
    Schedule,
    State,
    Value,
    Width,
    in_bytes,
)
from wgllm.product_shape import Choice, Product, Target
from wgllm.quant import QuantFormat
from wgllm.quant.state_words import state_layout
from wgllm.sampler_words import REQUEST_WORDS
from wgllm.sampling_launches import SamplingPlaces, sampling_launches, scratch_sizes
from wgllm.wgsl import Host, compose

# Weights share buffers of about this size: small enough that memory in pieces will do.
_ARENA = 256 << 20
# Shaders count numbers in 32 bits.
_LARGEST_BINDING = 1 << 30
_LARGEST_COUNT = 1 << 32
# A bias is bound from the first row of a shard on.
_ALIGNED_ROWS = ALIGNMENT // 4
# Logits of this many bytes are made at a time.
_LOGITS_BYTES = 16 << 20
# Scratch of one temporary, which of attention's scores decides how many rows a step may have.
_LARGEST_TEMPORARY = 64 << 20
SHADERS: Mapping[str, Shader] = {**TEXTBOOK, **FUSED, **EXPERTS}
"""How each operator is computed."""
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
    software: bool = False
    """Whether the device is software that imitates one: it wants other shaders."""
    subgroup: int = 0
    """The least number of invocations in a subgroup; 0 where shaders may not use them."""
    choices: Mapping[Product, Choice] = field(default_factory=dict)
    """What is known to be fastest on the device, by ``Product.bucket``."""
    host: Host = "naga"


def prepared(graph: Graph, *, attention: bool = True) -> Graph:
    """The graph with all that is fused for shaders; ``attention`` False leaves that in its steps."""
    passes = frozenset(PASSES) if attention else frozenset(PASSES) - {"attention"}
    return unfused(fuse(graph, passes), SHADERS)


def lower(graph: Graph, options: PlanOptions) -> Plan:
    """The plan of a prepared graph, without schedules: they are lowered when a width is asked for.

    Raises PlanError for what the limits do not allow, and for operators that have no shader.
    """
    return _Lowering(graph, options).plan


def products(graph: Graph, options: PlanOptions) -> Iterator[list[Product]]:
    """What a prepared graph multiplies to make a token, then what in its widest step. Raises PlanError."""
    lowering = _Lowering(graph, options)
    for rows in dict.fromkeys((1, lowering.plan.rows)):
        body, tail = Width("body", rows, lowering.plan.cells), Width("tail", 1)
        yield [
            *lowering.products(body),
            *lowering.products(tail),
        ]  # of a prompt only the last row gets logits


def has_shader(node: Node) -> bool:
    return node.op in SHADERS


def widest_step(graph: Graph, options: PlanOptions) -> int:
    """The most rows, halving ``options.rows``, whose temporaries stay small enough. At least 1."""
    room = min(options.limits.binding, options.limits.buffer, _LARGEST_TEMPORARY)
    per_row = max(
        4 * _count(graph.tensors[name].shape, {**options.sizes, ROWS: 1, OUT_ROWS: 0})
        for node in graph.nodes
        for name in node.outputs
        if graph.tensors[name].kind in ("temp", "output")
    )
    rows = options.rows
    while rows > 1 and rows * per_row > room:
        rows = (rows + 1) // 2
    return rows


class _Lowering:
    def __init__(self, graph: Graph, options: PlanOptions) -> None:
        self.graph = graph
        self.options = options
        self.limits = options.limits
        self.target = Target(options.limits, options.software, options.subgroup, options.choices)
        lacking = sorted({n.op for n in graph.nodes if not has_shader(n)})
        if lacking:
            raise PlanError(f"no shader computes {', '.join(lacking)}")
        self.parts: list[Part] = [self._part(n) for n in graph.nodes]
        self.regions: dict[str, Region] = {}
        """Of states, inputs, and temporaries that do not only rename another: their place, for the widest step."""
        self.renamed: dict[str, str] = {}
        self.weights = _Weights(graph, options)
        self.scratches: dict[tuple[str, str], Region] = {}
        self.kernels: dict[object, int] = {}
        self.plan = Plan(
            limits=options.limits,
            host=options.host,
            buffers=self.weights.buffers,
            fills=self.weights.fills,
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
        self._place_states()
        self._place_inputs()
        self._place_temporaries()
        self._name_outputs()
        self.sampling = self._place_sampling()
        for node, part in zip(graph.nodes, self.parts, strict=True):
            places = tuple(self.whole(o) for o in node.outputs)
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
        return math.prod(self.shape(name, width))

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
                    self.regions[name] = self._take_scratch(4 * self._numbers(name, widest), free)
            own = SHADERS[node.op].scratch(Context(self, node, widest))
            for name, size in own.items():
                self.scratches[node.outputs[0], name] = self._take_scratch(size, free)
            free += [self.scratches[node.outputs[0], name].buffer for name in own]
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

    def _take_scratch(self, size: int, free: list[int]) -> Region:
        """The smallest free buffer that is large enough, else the largest, which grows; else a new one."""
        size = _up(size, 16)
        buffers = self.plan.buffers
        if not free:
            return self._new_buffer(f"scratch {len(buffers)}", size, "scratch")
        index = min(free, key=lambda b: (buffers[b].size < size, abs(buffers[b].size - size)))
        free.remove(index)
        if buffers[index].size < size:
            region = self._new_buffer(buffers[index].name, size, "scratch")  # for its checks
            buffers[index] = buffers.pop(region.buffer)
        return Region(index, 0, buffers[index].size)

    def _name_outputs(self) -> None:
        for tensor in self.graph.of_kind("output"):
            part: Part = "tail" if OUT_ROWS in tensor.shape else "body"
            row = 4 * self._numbers(tensor.name, Width(part, 1, self.plan.cells))
            dtype: Literal["f32", "i32"] = "i32" if tensor.dtype == "i32" else "f32"
            self.plan.outputs[tensor.name] = Value(self.whole(tensor.name), row, part, dtype)

    def _place_sampling(self) -> SamplingPlaces | None:
        inputs, logits = self.plan.inputs, self.plan.outputs.get("logits")
        if logits is None or logits.part != "tail" or not {"token", "pos"} <= inputs.keys():
            return None
        request = self._new_buffer("sampler", 4 * REQUEST_WORDS, "input")
        taken = self._new_buffer("taken", 16, "input")
        self.plan.sampling = Sampling(request, taken)
        vocab_size = logits.row // 4
        left = tuple(
            self._new_buffer(f"candidates {i}", size, "scratch")
            for i, size in enumerate(scratch_sizes(vocab_size))
        )
        token, pos = (inputs[name].region for name in ("token", "pos"))
        return SamplingPlaces(
            logits.region, vocab_size, token, pos, request, taken, left, self.options.software
        )

    def _root(self, name: str) -> str:
        return self.renamed.get(name, name)

    # What launches ask for

    def shape(self, name: str, width: Width) -> tuple[int, ...]:
        return tuple(self._dim(d, width) for d in self.graph.tensors[name].shape)

    def whole(self, name: str) -> Region:
        if self.graph.tensors[name].kind == "weight":
            return self.weights.vectors[(name,)]
        return self.regions[self._root(name)]

    def region(self, name: str, width: Width) -> Region:
        region = self.whole(name)
        if self.graph.tensors[name].kind in ("weight", "state"):
            return region
        return region._replace(size=_up(4 * self._numbers(name, width), 16))

    def shards(self, stack: Stack) -> list[Shard]:
        return self.weights.shards[stack]

    def vector(self, tensors: tuple[str, ...]) -> Region:
        return self.weights.vectors[tensors]

    def table(self, rope: Node) -> Region:
        return self.weights.tables[rope_key(rope)]

    def state(self, name: str) -> State:
        return self.plan.states[name]

    def scratch(self, node: Node, name: str) -> Region:
        return self.scratches[node.outputs[0], name]

    # Schedules

    def schedule(self, width: Width) -> Schedule:
        """The dispatches of a part."""
        made: list[Dispatch] = []
        if width.part in ("greedy", "draw"):
            if self.sampling is None:
                raise PlanError("the plan makes no logits, or takes no tokens")
            made = [
                self._dispatch(s, len(self.graph.nodes) - 1)
                for s in sampling_launches(width.part, self.sampling)
            ]
        for i, (node, part) in enumerate(zip(self.graph.nodes, self.parts, strict=True)):
            if part == width.part:
                for launch in SHADERS[node.op].launches(Context(self, node, width)):
                    made.append(self._dispatch(launch, i))
        return tuple(made)

    def products(self, width: Width) -> Iterator[Product]:
        """Of a schedule, in order."""
        for node, part in zip(self.graph.nodes, self.parts, strict=True):
            if part == width.part:
                for launch in SHADERS[node.op].launches(Context(self, node, width)):
                    if launch.product is not None:
                        yield launch.product

    def _dispatch(self, launch: Launch, node: int) -> Dispatch:
        if len(launch.bindings) > self.limits.bindings:
            raise PlanError(f"{launch.entry} needs {len(launch.bindings)} buffers")
        key = (launch.files, launch.entry, tuple(sorted(launch.constants.items())))
        index = self.kernels.get(key)
        if index is None:
            source = compose(
                *launch.files,
                constants=launch.constants,
                host=self.options.host,
                features=launch.features,
            )
            index = self.kernels[key] = len(self.plan.kernels)
            self.plan.kernels.append(Kernel(source, launch.entry))
        groups = max(1, min(launch.groups, self.limits.workgroups))  # kernels do with any number
        return Dispatch(index, tuple(launch.bindings), groups, node, launch.cost)


class _Weights:
    """The weights of a graph in arenas: what is multiplied with packed, in shards; small parameters; rope's tables."""

    def __init__(self, graph: Graph, options: PlanOptions) -> None:
        self.graph = graph
        self.limits = options.limits
        self.buffers: list[Buffer] = []
        self.fills: list[Fill] = []
        self.shards: dict[Stack, list[Shard]] = {}
        self.vectors: dict[tuple[str, ...], Region] = {}
        self.tables: dict[tuple[object, ...], Region] = {}
        for node in graph.nodes:
            shader = SHADERS[node.op]
            for stack in shader.stacks(graph, node):
                if stack not in self.shards:
                    of_experts = len(graph.tensors[stack.tensors[0]].shape) == 3
                    make = self._expert_shards if of_experts else self._shards
                    self.shards[stack] = list(make(stack))
            for tensors in shader.vectors(graph, node):
                if tensors not in self.vectors:
                    self.vectors[tensors] = self._vector(tensors)
        for node in graph.nodes:
            if rope_key(node) and rope_key(node) not in self.tables:
                self.tables[rope_key(node)] = self._table(node, options.positions)

    def _place(self, size: int) -> Region:
        """In the last arena, or in a new one where that is full."""
        size = _up(size, 16)
        at = _up(self.buffers[-1].size, ALIGNMENT) if self.buffers else 0
        if not self.buffers or at + size > min(_ARENA, self.limits.buffer):
            self.buffers.append(Buffer(f"weights {len(self.buffers)}", 0, "weights"))
            at = 0
        self.buffers[-1] = Buffer(self.buffers[-1].name, at + size, "weights")
        return Region(len(self.buffers) - 1, at, size)

    def _shards(self, stack: Stack) -> Iterator[Shard]:
        heights = [_ints(self.graph.tensors[name].shape)[0] for name in stack.tensors]
        width = _ints(self.graph.tensors[stack.tensors[0]].shape)[1]
        fmt = format_of(self.graph, stack.tensors[0])
        copies = len(stack.tensors) if stack.paired else 1  # rows of a shard for each that it counts
        height = heights[0] if stack.paired else sum(heights)
        per_row = copies * width // fmt.block_size
        count = self._most(fmt, copies * width, height)
        if _ALIGNED_ROWS <= count < height:
            count -= count % _ALIGNED_ROWS
        if not count:
            raise self._too_large(stack)
        for first in range(0, height, count):
            n = min(count, height - first)
            layout = fmt.layout(n * per_row)
            region = self._place(4 * layout.size)
            if stack.paired:
                rows = [Rows(name, first, first + n) for name in stack.tensors]
            else:
                rows = list(_cut(stack.tensors, heights, first, first + n))
            self.fills.append(Fill(region, "packed", tuple(rows)))
            yield Shard(region, first, n, layout)

    def _expert_shards(self, stack: Stack) -> Iterator[Shard]:
        """Whole experts, as many as a binding holds; else parts of one. Those of a pair lie one after the other."""
        experts, height, width = _ints(self.graph.tensors[stack.tensors[0]].shape)
        fmt = format_of(self.graph, stack.tensors[0])
        numbers = len(stack.tensors) * width  # of a row, or of both
        at_once, count = self._most(fmt, numbers * height, experts), height
        if not at_once:
            at_once, count = 1, self._most(fmt, numbers, height)
        if not count:
            raise self._too_large(stack)
        for expert in range(0, experts, at_once):
            n_experts = min(at_once, experts - expert)
            for first in range(0, height, count):
                n = min(count, height - first)
                layout = fmt.layout(n_experts * n * numbers // fmt.block_size)
                region = self._place(4 * layout.size)
                start = expert * height + first
                rows = tuple(Rows(name, start, start + n_experts * n) for name in stack.tensors)
                self.fills.append(Fill(region, "packed", rows))
                yield Shard(region, first, n, layout, (expert, n_experts))

    def _most(self, fmt: QuantFormat, numbers: int, wanted: int) -> int:
        """How many of the ``wanted`` runs of so many numbers a binding holds."""
        most = min(self.limits.binding, self.limits.buffer, _LARGEST_BINDING)
        count = min(wanted, most // fmt.row_bytes(numbers), (_LARGEST_COUNT - 1) // numbers)
        while (
            count and 4 * fmt.layout(count * numbers // fmt.block_size).size > most
        ):  # the padding of planes
            count -= 1
        return count

    def _too_large(self, stack: Stack) -> PlanError:
        most = min(self.limits.binding, self.limits.buffer, _LARGEST_BINDING)
        return PlanError(
            f"a row of {stack.tensors[0]} is larger than the {in_bytes(most)} that a shader sees at once"
        )

    def _vector(self, tensors: tuple[str, ...]) -> Region:
        rows = [Rows(name, 0, _ints(self.graph.tensors[name].shape)[0]) for name in tensors]
        region = self._place(4 * sum(r.last for r in rows))
        self.fills.append(Fill(region, "numbers", tuple(rows)))
        return region

    def _table(self, rope: Node, positions: int) -> Region:
        """cos and sin [positions, dim / 2, 2] of one kind of rope; made by the host, in whose hands float32 is."""
        theta, dim, scale, magnitude, *factors = rope_key(rope)
        assert isinstance(theta, float) and isinstance(dim, int)
        assert isinstance(scale, float) and isinstance(magnitude, float)
        size = 4 * positions * dim
        if size > min(self.limits.binding, self.limits.buffer):
            raise PlanError(
                f"rope's table for {positions} positions takes {in_bytes(size)}; a smaller context is needed"
            )
        region = self._place(size)
        rows = tuple(Rows(str(name), 0, dim // 2) for name in factors)
        self.fills.append(Fill(region, "rope", rows, positions, theta, dim, scale, magnitude))
        return region


def _cut(tensors: Sequence[str], heights: Sequence[int], first: int, last: int) -> Iterator[Rows]:
    """Rows ``first:last`` of matrices on top of each other."""
    start = 0
    for name, height in zip(tensors, heights, strict=True):
        low, high = max(first - start, 0), min(last - start, height)
        if low < high:
            yield Rows(name, low, high)
        start += height


def rope_key(node: Node) -> tuple[object, ...]:
    """One table for all ropes of a kind; of other operators nothing."""
    if node.op not in ("rope", "rope_write") or not node.attrs["dim"]:
        return ()
    first = 2 if node.op == "rope" else 5 if node.attrs["norm"] is None else 7
    return (
        float(node.attrs["theta"]), node.attrs["dim"], float(node.attrs["scale"]), float(node.attrs["magnitude"]),
        *node.inputs[first:],
    )  # fmt: skip


def _ints(shape: Shape) -> tuple[int, ...]:
    """A weight's shape, which has no names."""
    assert all(isinstance(d, int) for d in shape)
    return shape  # type: ignore[return-value]


def _count(shape: Shape, sizes: Mapping[str, int]) -> int:
    return math.prod(d if isinstance(d, int) else sizes[d] for d in shape)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
