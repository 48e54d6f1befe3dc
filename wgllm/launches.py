"""Which shaders compute a node: for each operator the weights that it wants together, its scratch, and its dispatches.

``wgllm.lowering`` decides where everything lies; here stands what is bound to a shader, and with which constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wgllm.graph import Graph, Node
from wgllm.plan import Limits, Region, State, Width
from wgllm.product_shape import Product, Target
from wgllm.quant import QuantFormat, format_by_name
from wgllm.quant.packing import Layout
from wgllm.quant.state_words import state_layout
from wgllm.wgsl import Constant, Renamed

_WORKGROUP = 64


@dataclass(frozen=True)
class Stack:
    """Matrices that a shader reads as one, on top of each other: of one width and one format.

    Of mixtures of experts one tensor [experts, rows, width], or two of the same shape that are paired.
    """

    tensors: tuple[str, ...]
    paired: bool = False
    """Two of the same height: each shard has the same rows of both."""


@dataclass(frozen=True)
class Shard:
    """Rows ``first : first + count`` of a stack, of both matrices if they are paired; packed.

    Of a stack of experts (all rows of) several of them, or a part of one's rows.
    """

    region: Region
    first: int
    count: int
    layout: Layout
    experts: tuple[int, int] = (0, 0)
    """The first, and how many."""


@dataclass(frozen=True)
class Launch:
    """A dispatch before its kernel has a number."""

    files: tuple[str | Renamed, ...]
    entry: str
    constants: Mapping[str, Constant]
    bindings: Sequence[Region]
    groups: int
    cost: int
    features: tuple[str, ...] = ()
    """Of WGSL."""
    product: Product | None = None
    """What it computes, if there are several kernels for that."""


class Places(Protocol):
    """Where a lowering has put everything."""

    graph: Graph
    limits: Limits
    target: Target

    def shape(self, name: str, width: Width) -> tuple[int, ...]: ...

    def region(self, name: str, width: Width) -> Region:
        """What a binding sees of a tensor: as much as a schedule has, or the whole of a weight or a state."""

    def whole(self, name: str) -> Region:
        """The same, for the widest step."""

    def shards(self, stack: Stack) -> list[Shard]: ...

    def vector(self, tensors: tuple[str, ...]) -> Region:
        """Small float32 parameters, one after the other."""

    def table(self, rope: Node) -> Region:
        """cos and sin [positions, dim / 2, 2]."""

    def state(self, name: str) -> State: ...

    def scratch(self, node: Node, name: str) -> Region:
        """What an operator asked for by ``Shader.scratch``."""


class Context:
    """A node in a schedule: what its shader needs to know."""

    def __init__(self, places: Places, node: Node, width: Width) -> None:
        self.places = places
        self.node = node
        self.width = width

    def shape(self, name: str) -> tuple[int, ...]:
        """As this schedule has it."""
        return self.places.shape(name, self.width)

    def numbers(self, name: str) -> int:
        return math.prod(self.shape(name))

    def region(self, name: str) -> Region:
        return self.places.region(name, self.width)

    def regions(self) -> list[Region]:
        """Of the inputs, then the outputs."""
        return [self.region(name) for name in (*self.node.inputs, *self.node.outputs)]

    def shards(self, stack: Stack) -> tuple[QuantFormat, list[Shard]]:
        return format_of(self.places.graph, stack.tensors[0]), self.places.shards(stack)

    def state(self, name: str) -> State:
        return self.places.state(name)

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
    ) -> Launch:
        """``work`` counts invocations, in place of ``groups``, which counts workgroups."""
        return Launch(
            (f"kernels/{kernel}.wgsl", *files),
            entry or kernel,
            constants,
            bindings,
            groups or -(-work // _WORKGROUP),
            cost or work,
        )


def format_of(graph: Graph, weight: str) -> QuantFormat:
    return format_by_name(graph.tensors[weight].dtype)


def _nothing(graph: Graph, node: Node) -> Sequence[tuple[str, ...]]:
    return ()


def _no_stacks(graph: Graph, node: Node) -> Sequence[Stack]:
    return ()


def _no_scratch(context: Context) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True)
class Shader:
    """How an operator is computed."""

    launches: Callable[[Context], Iterator[Launch]]
    stacks: Callable[[Graph, Node], Sequence[Stack]] = _no_stacks
    """Matrices."""
    vectors: Callable[[Graph, Node], Sequence[tuple[str, ...]]] = _nothing
    """Weights of one dimension."""
    scratch: Callable[[Context], Mapping[str, int]] = _no_scratch
    """Bytes that it needs while it runs in a schedule, by names of its own."""


def _embed(c: Context) -> Iterator[Launch]:
    table, token = c.node.inputs
    (out,) = c.node.outputs
    rows, width = c.shape(out)
    fmt, shards = c.shards(Stack((table,)))
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


def _select_rows(c: Context) -> Iterator[Launch]:
    x, out_rows = c.node.inputs
    (out,) = c.node.outputs
    rows, width = c.shape(out)
    # x was made by the body, whose width a tail does not know: all of its rows.
    bindings = [c.places.whole(x), c.region(out_rows), c.region(out)]
    yield c.launch("select_rows", {"OUT_ROWS": rows, "WIDTH": width}, bindings, work=rows * width)


def _elementwise(parameter: str | None = None) -> Callable[[Context], Iterator[Launch]]:
    def shader(c: Context) -> Iterator[Launch]:
        (x,), (out,) = c.node.inputs, c.node.outputs
        count = c.numbers(out)
        constants: dict[str, Constant] = {"COUNT": count}
        if parameter is not None:
            constants["PARAMETER"] = float(c.node.attrs[parameter])
        yield c.launch("elementwise", constants, [c.region(x), c.region(out)], work=count, entry=c.node.op)

    return shader


def _binary(c: Context) -> Iterator[Launch]:
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


def _reshape(c: Context) -> Iterator[Launch]:
    yield from ()  # the same buffer under another name


def _norm(*attributes: str) -> Callable[[Context], Iterator[Launch]]:
    def shader(c: Context) -> Iterator[Launch]:
        *rows, width = c.shape(c.node.outputs[0])
        constants = {"ROWS": math.prod(rows), "WIDTH": width}
        options = {a.upper(): float(c.node.attrs[a]) for a in attributes}
        count = math.prod(rows) * width
        yield c.launch(c.node.op, constants | options, c.regions(), groups=math.prod(rows), cost=4 * count)

    return shader


def _layer_norm(c: Context) -> Iterator[Launch]:
    x, w, *bias = c.node.inputs
    *rows, width = c.shape(c.node.outputs[0])
    constants: dict[str, Constant] = {
        "ROWS": math.prod(rows),
        "WIDTH": width,
        "EPS": float(c.node.attrs["eps"]),
        "HEADS": c.numbers(w) // width,
    }
    bindings = [c.region(name) for name in (x, w, *c.node.outputs, *bias)]
    entry = "layer_norm" if bias else "layer_norm_plain"
    count = math.prod(rows) * width
    yield c.launch("layer_norm", constants, bindings, groups=math.prod(rows), cost=4 * count, entry=entry)


def _rope(c: Context) -> Iterator[Launch]:
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
    bindings = [c.region(x), c.region(pos), c.places.table(c.node), c.region(out)]
    yield c.launch("rope", constants, bindings, work=rows * heads * head_dim)


def _cell_write(c: Context) -> Iterator[Launch]:
    state, pos, slot = c.node.inputs
    (rows,) = c.shape(pos)
    constants = {"ROWS": rows, "CELLS": c.state(state).shape[1]}
    yield c.launch("cell_write", constants, [c.region(n) for n in (pos, slot, state)], work=rows)


def _kv_write(c: Context) -> Iterator[Launch]:
    state, x, pos, slot = c.node.inputs
    kept = c.state(state)
    _, kv_heads, cells, head_dim = kept.shape
    (rows,) = c.shape(pos)
    constants = {"ROWS": rows, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "CELLS": cells}
    layout = state_layout(kept.kv_type, math.prod(kept.shape[:-1]), head_dim)
    if layout.scales_per_cell:
        constants["SCALES"] = layout.scales
    bindings = [c.region(n) for n in (x, pos, slot, state)]
    heads = rows * kv_heads
    files = [f"kv_store/{kept.kv_type}.wgsl"]
    yield c.launch("kv_write", constants, bindings, groups=heads, cost=heads * head_dim, files=files)


def _attention(c: Context) -> Iterator[Launch]:
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


def _mask(c: Context) -> Iterator[Launch]:
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


def matrix(index: int) -> Callable[[Graph, Node], Sequence[Stack]]:
    """The weight that is input ``index``, by itself."""
    return lambda graph, node: [Stack((node.inputs[index],))]


def vectors(graph: Graph, node: Node) -> Sequence[tuple[str, ...]]:
    """All weights among the inputs, each by itself."""
    return [(n,) for n in node.inputs if graph.tensors[n].kind == "weight"]


TEXTBOOK: Mapping[str, Shader] = {
    "embed": Shader(_embed, matrix(0)),
    "select_rows": Shader(_select_rows),
    "scale": Shader(_elementwise("factor")),
    "softcap": Shader(_elementwise("cap")),
    "silu": Shader(_elementwise()),
    "gelu_tanh": Shader(_elementwise()),
    "gelu": Shader(_elementwise()),
    "add": Shader(_binary, vectors=vectors),
    "mul": Shader(_binary),
    "reshape": Shader(_reshape),
    "rms_norm": Shader(_norm("eps", "offset"), vectors=vectors),
    "layer_norm": Shader(_layer_norm, vectors=vectors),
    "softmax": Shader(_norm()),
    "rope": Shader(_rope),
    "cell_write": Shader(_cell_write),
    "kv_write": Shader(_kv_write),
    "attn_scores": Shader(_attention),
    "attn_values": Shader(_attention),
    "mask": Shader(_mask),
}
"""By operator."""
