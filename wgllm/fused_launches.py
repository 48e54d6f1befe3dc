"""The shaders of fused operators, and of products.

Where a kernel can't take all that is fused, a node is several dispatches. Matrices that are read together are stacked,
so that a product of queries, keys and values is one dispatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from wgllm.attention_shape import Attention, attention_shape, most_scratch
from wgllm.graph import Graph, Node
from wgllm.launches import Context, Launch, Shader, Shard, Stack, format_of, matrix, vectors
from wgllm.plan import Region
from wgllm.product_shape import After, Before, Product, most_partial_sums, shape, worth_fusing
from wgllm.quant.state_words import state_layout
from wgllm.wgsl import Constant, Renamed


@dataclass(frozen=True)
class _Rows:
    """What a product reads and makes."""

    x: Region
    inputs: int
    y: Region
    width: int
    """Of y."""


def _product(
    c: Context,
    stack: Stack,
    rows: _Rows,
    *,
    first: int = 0,
    before: Before = "plain",
    after: After = "plain",
    norm: Region | None = None,
    constants: Mapping[str, Constant] | None = None,
    bias: Region | None = None,
    residual: Region | None = None,
) -> Iterator[Launch]:
    """Writes columns of y from ``first`` on; a dispatch for each shard of the stack, or two where inputs are split.
    Without a gate the matrices of a pair make columns side by side."""
    for shard, product in _of_shards(c, stack, rows.inputs, before, after):
        chosen = shape(product, c.places.target)
        part = None
        if bias is not None:
            part = Region(bias.buffer, bias.offset + 4 * shard.first, up16(4 * shard.count))
        sums = None
        if chosen.scratch:
            sums = c.places.scratch(c.node, "partial_sums")._replace(size=up16(chosen.scratch))
        given = {
            "weights": shard.region,
            "x": rows.x,
            "y": rows.y,
            "norm": norm,
            "bias": part,
            "residual": residual,
            "partial_sums": sums,
        }
        place = {"OUT_WIDTH": rows.width, "OUT_FIRST": first + shard.first}
        yield Launch(
            chosen.files,
            chosen.entry,
            {**place, **chosen.constants, **shard.layout.constants, **(constants or {})},
            bound(given, chosen.bindings),
            chosen.groups,
            product.multiplications,
            chosen.features,
            product,
        )
        if (reduce := chosen.reduce) is not None:
            yield Launch(
                reduce.files,
                reduce.entry,
                {**place, **reduce.constants},
                bound(given, reduce.bindings),
                reduce.groups,
                product.rows * product.outputs,
            )


def bound(given: Mapping[str, Region | None], names: Sequence[str]) -> list[Region]:
    return [region for name in names if (region := given[name]) is not None]


def _of_shards(
    c: Context, stack: Stack, inputs: int, before: Before = "plain", after: After = "plain"
) -> Iterator[tuple[Shard, Product]]:
    fmt, shards = c.shards(stack)
    side_by_side = stack.paired and not after.startswith("gated")
    for shard in shards:
        outputs = shard.count * (len(stack.tensors) if side_by_side else 1)
        yield shard, Product(c.width.rows, inputs, outputs, fmt, before, after)


def _partial_sums(c: Context, stacks: Iterable[Stack], inputs: int) -> dict[str, int]:
    """Scratch of products of plain rows."""
    target = c.places.target
    most = max(most_partial_sums(p, target) for stack in stacks for _, p in _of_shards(c, stack, inputs))
    return {"partial_sums": most} if most else {}


# matmul, matmul_add, matmul_row_add


def _matmul(c: Context) -> Iterator[Launch]:
    x, w = c.node.inputs[:2]
    (out,) = c.node.outputs
    rows = _Rows(c.region(x), c.shape(x)[1], c.region(out), c.shape(out)[1])
    after: After = "plain"
    bias = residual = None
    if c.node.op == "matmul_add":
        after, residual = "added", c.region(c.node.inputs[2])
    elif c.node.op == "matmul_row_add":
        after, residual = "biased_added", c.region(c.node.inputs[3])
        bias = c.places.vector(c.node.inputs[2:3])
    yield from _product(c, Stack((w,)), rows, after=after, bias=bias, residual=residual)


def _matmul_scratch(c: Context) -> Mapping[str, int]:
    x, w = c.node.inputs[:2]
    return _partial_sums(c, [Stack((w,))], c.shape(x)[1])


# norm_matmul, matmul_row


@dataclass(frozen=True)
class _Run:
    """Weights next to each other that one kernel reads: of one format, all of them with a bias or none."""

    stack: Stack
    biases: tuple[str, ...]
    first: int
    """The column of y at which it begins."""


def _runs(graph: Graph, node: Node) -> Iterator[_Run]:
    biased = node.attrs["biased"]
    weights_at = 2 if node.op == "norm_matmul" else 1
    weights = node.inputs[weights_at : weights_at + len(biased)]
    biases = iter(node.inputs[weights_at + len(biased) :])
    of_each = [(w, next(biases) if has_bias else None) for w, has_bias in zip(weights, biased, strict=True)]
    first = 0
    for _, group in groupby(of_each, key=lambda item: (graph.tensors[item[0]].dtype, item[1] is None)):
        run = list(group)
        stack = Stack(tuple(w for w, _ in run))
        yield _Run(stack, tuple(b for _, b in run if b is not None), first)
        first += sum(d for w, _ in run if isinstance(d := graph.tensors[w].shape[0], int))


def _norm_matmul(c: Context) -> Iterator[Launch]:
    x, norm = c.node.inputs[:2]
    (out,) = c.node.outputs
    fused = _takes_norm(c)
    rows = _Rows(c.region(x), c.shape(x)[1], c.region(out), c.shape(out)[1])
    if not fused:
        normed = _normed(c)
        yield _rms_norm(c, normed)
        rows = _Rows(normed, rows.inputs, rows.y, rows.width)
    for run in _runs(c.places.graph, c.node):
        yield from _product(
            c,
            run.stack,
            rows,
            first=run.first,
            before="normed" if fused else "plain",
            after="biased" if run.biases else "plain",
            norm=c.places.vector((norm,)) if fused else None,
            constants=_norm_constants(c.node.attrs) if fused else None,
            bias=c.places.vector(run.biases) if run.biases else None,
        )


def _matmul_row(c: Context) -> Iterator[Launch]:
    x = c.node.inputs[0]
    (out,) = c.node.outputs
    rows = _Rows(c.region(x), c.shape(x)[1], c.region(out), c.shape(out)[1])
    for run in _runs(c.places.graph, c.node):
        after: After = "biased" if run.biases else "plain"
        bias = c.places.vector(run.biases) if run.biases else None
        yield from _product(c, run.stack, rows, first=run.first, after=after, bias=bias)


def _matmul_row_scratch(c: Context) -> Mapping[str, int]:
    stacks = [run.stack for run in _runs(c.places.graph, c.node)]
    return _partial_sums(c, stacks, c.shape(c.node.inputs[0])[1])


def _run_stacks(graph: Graph, node: Node) -> Sequence[Stack]:
    return [run.stack for run in _runs(graph, node)]


def _run_biases(graph: Graph, node: Node) -> Sequence[tuple[str, ...]]:
    return [run.biases for run in _runs(graph, node) if run.biases]


def _takes_norm(c: Context) -> bool:
    """Whether the product's kernel norms its rows itself, in this schedule."""
    inputs = c.shape(c.node.inputs[0])[1]
    outputs = c.shape(c.node.outputs[0])[1]
    fmt = format_of(c.places.graph, c.node.inputs[2])
    return worth_fusing(Product(c.width.rows, inputs, outputs, fmt, "normed"), c.places.target)


def _normed(c: Context) -> Region:
    """Where rows lie after their norm, when no kernel does both."""
    return c.places.scratch(c.node, "normed")._replace(size=up16(4 * c.numbers(c.node.inputs[0])))


def _rms_norm(c: Context, out: Region) -> Launch:
    x, norm = c.node.inputs[:2]
    rows, width = c.shape(x)
    constants = {"ROWS": rows, "WIDTH": width, **_norm_constants(c.node.attrs)}
    bindings = [c.region(x), c.places.vector((norm,)), out]
    return c.launch("rms_norm", constants, bindings, groups=rows, cost=4 * rows * width)


def _norm_constants(attrs: Mapping[str, float]) -> dict[str, Constant]:
    return {"EPS": float(attrs["eps"]), "OFFSET": float(attrs["offset"])}


def _norm_matmul_scratch(c: Context) -> Mapping[str, int]:
    if _takes_norm(c):  # in narrower schedules too
        return {}
    stacks = [run.stack for run in _runs(c.places.graph, c.node)]
    return _normed_scratch(c) | _partial_sums(c, stacks, c.shape(c.node.inputs[0])[1])


def _normed_scratch(c: Context) -> dict[str, int]:
    return {"normed": 4 * c.numbers(c.node.inputs[0])}


# norm_gated, matmul_gated


def _norm_gated(c: Context) -> Iterator[Launch]:
    x, norm = c.node.inputs[:2]
    if not _takes_norm(c):
        normed = _normed(c)
        yield _rms_norm(c, normed)
        yield from _gated(c, normed)
        return
    yield from _product(
        c,
        _pair(c.node),
        _gated_rows(c, c.region(x)),
        before="normed",
        after=_gate(c.node),
        norm=c.places.vector((norm,)),
        constants=_norm_constants(c.node.attrs),
    )


def _matmul_gated(c: Context) -> Iterator[Launch]:
    x = c.region(c.node.inputs[0])
    if _takes_norm(c):  # or a gate: few rows on a card
        yield from _product(c, _pair(c.node), _gated_rows(c, x), after=_gate(c.node))
    else:
        yield from _gated(c, x)


def _gated(c: Context, x: Region) -> Iterator[Launch]:
    """Of rows that need no norm any more."""
    stack, after, rows = _pair(c.node), _gate(c.node), _gated_rows(c, x)
    if not _both_at_once(c):
        yield from _product(c, stack, rows, after=after)
        return
    # Tiled products have no gate: both parts side by side, and then together.
    count = c.numbers(c.node.outputs[0])
    both = c.places.scratch(c.node, "both")._replace(size=up16(8 * count))
    yield from _product(c, stack, _Rows(x, rows.inputs, both, 2 * rows.width))
    yield c.launch(
        "elementwise", {"COUNT": count, "WIDTH": rows.width}, [both, rows.y], work=count, entry=after
    )


def _gated_rows(c: Context, x: Region) -> _Rows:
    (out,) = c.node.outputs
    return _Rows(x, c.shape(c.node.inputs[0])[1], c.region(out), c.shape(out)[1])


def _gate(node: Node) -> After:
    return "gated_silu" if node.attrs["activation"] == "silu" else "gated_gelu_tanh"


def _norm_gated_scratch(c: Context) -> Mapping[str, int]:
    return {} if _takes_norm(c) else {**_normed_scratch(c), **_matmul_gated_scratch(c)}


def _matmul_gated_scratch(c: Context) -> Mapping[str, int]:
    if _takes_norm(c) or not _both_at_once(c):
        return {}
    sums = _partial_sums(c, [_pair(c.node)], c.shape(c.node.inputs[0])[1])
    return {"both": 8 * c.numbers(c.node.outputs[0]), **sums}


def _pair(node: Node) -> Stack:
    """Gate and up."""
    return Stack(node.inputs[-2:], paired=True)


def _both_at_once(c: Context) -> bool:
    """Whether a product without a gate can make both parts."""
    return len(c.shards(_pair(c.node))[1]) == 1 and c.shape(c.node.inputs[0])[1] % 32 == 0


# norm_add, rope_write


def _norm_add(c: Context) -> Iterator[Launch]:
    *rows, width = c.shape(c.node.outputs[0])
    constants = {"ROWS": math.prod(rows), "WIDTH": width, **_norm_constants(c.node.attrs)}
    yield c.launch(
        "norm_add", constants, c.regions(), groups=math.prod(rows), cost=5 * math.prod(rows) * width
    )


def _rope_write(c: Context) -> Iterator[Launch]:
    qkv, k_state, v_state, pos, slot = c.node.inputs[:5]
    (q, _, _), attrs = c.node.outputs, c.node.attrs
    rows, heads, head_dim = c.shape(q)
    _, kv_heads, cells, _ = c.state(k_state).shape
    constants: dict[str, Constant] = {
        "ROWS": rows,
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "DIM": attrs["dim"],
        "INTERLEAVED": attrs["interleaved"],
        "CELLS": cells,
    }
    # Where nothing is turned the shader reads no table.
    table = c.places.table(c.node) if attrs["dim"] else c.region(qkv)
    bindings = [*map(c.region, (qkv, k_state, v_state, pos, slot)), table, c.region(q)]
    how = "plain"
    if attrs["norm"] is not None:
        how = "normed"
        constants |= _norm_constants(attrs["norm"])
        bindings.append(c.places.vector(c.node.inputs[5:7]))
    stores = []
    for letter, state in (("k", c.state(k_state)), ("v", c.state(v_state))):
        stores.append(store_snippet(state.kv_type, letter))
        layout = state_layout(state.kv_type, math.prod(state.shape[:-1]), head_dim)
        if layout.scales_per_cell:
            constants[f"{letter.upper()}_SCALES"] = layout.scales
    all_heads = rows * (heads + 2 * kv_heads)
    files: tuple[str | Renamed, ...] = ("kernels/rope_write.wgsl", f"heads/{how}.wgsl", *stores)
    yield Launch(
        files,
        "rope_write",
        constants,
        bindings,
        all_heads,
        4 * all_heads * head_dim,
    )


def store_snippet(kv_type: str, letter: str) -> Renamed:
    """What stores a cell of a state of ``kv_type``, its names with ``letter`` before them."""
    names = ("state", "store_cell", "store_blocks", "store_block")
    words = tuple((name, f"{letter}_{name}") for name in names)
    return Renamed(f"kv_store/{kv_type}.wgsl", (*words, ("SCALES", f"{letter.upper()}_SCALES")))


def _head_norms(graph: Graph, node: Node) -> Sequence[tuple[str, ...]]:
    return [] if node.attrs["norm"] is None else [node.inputs[5:7]]


# attention


def _of_node(c: Context) -> Attention:
    q, k, v, _, _, _ = c.node.inputs
    rows, heads, head_dim = c.shape(q)
    kept = c.state(k)
    slots, kv_heads, cells, _ = kept.shape
    attrs = c.node.attrs
    return Attention(
        rows, heads, kv_heads, head_dim, slots, cells, min(cells, c.width.cells), kept.kv_type, c.state(v).kv_type,
        float(attrs["scale"]), attrs["softcap"], attrs["window"],
    )  # fmt: skip


def _attention(c: Context) -> Iterator[Launch]:
    node = _of_node(c)
    chosen = attention_shape(node, c.places.limits, software=c.places.target.software)
    bindings = c.regions()
    y = bindings.pop()
    partial = y
    if chosen.reduce is not None:
        partial = c.places.scratch(c.node, "splits")._replace(size=up16(4 * chosen.scratch))
    cost = 2 * node.rows * node.heads * node.seen * node.head_dim
    files: tuple[str | Renamed, ...] = (f"kernels/{chosen.kernel}.wgsl", *chosen.snippets)
    yield Launch(files, chosen.kernel, chosen.constants, [*bindings, partial], chosen.groups, cost)
    if chosen.reduce is not None:
        numbers = node.rows * node.heads * node.head_dim
        yield c.launch(
            "attention_reduce",
            chosen.reduce.constants,
            [partial, y],
            groups=chosen.reduce.groups,
            cost=numbers,
        )


def _attention_scratch(c: Context) -> Mapping[str, int]:
    numbers = most_scratch(_of_node(c), c.places.limits, software=c.places.target.software)
    return {"splits": 4 * numbers} if numbers else {}


def up16(n: int) -> int:
    return -(-n // 16) * 16


FUSED: Mapping[str, Shader] = {
    "matmul": Shader(_matmul, matrix(1), scratch=_matmul_scratch),
    "matmul_add": Shader(_matmul, matrix(1), scratch=_matmul_scratch),
    "matmul_row_add": Shader(_matmul, matrix(1), lambda graph, node: [node.inputs[2:3]], _matmul_scratch),
    "matmul_row": Shader(_matmul_row, _run_stacks, _run_biases, _matmul_row_scratch),
    "matmul_gated": Shader(_matmul_gated, lambda graph, node: [_pair(node)], scratch=_matmul_gated_scratch),
    "norm_matmul": Shader(
        _norm_matmul,
        _run_stacks,
        lambda graph, node: [node.inputs[1:2], *_run_biases(graph, node)],
        _norm_matmul_scratch,
    ),
    "norm_gated": Shader(
        _norm_gated,
        lambda graph, node: [_pair(node)],
        lambda graph, node: [node.inputs[1:2]],
        _norm_gated_scratch,
    ),
    "norm_add": Shader(_norm_add, vectors=vectors),
    "rope_write": Shader(_rope_write, vectors=_head_norms),
    "attention": Shader(_attention, scratch=_attention_scratch),
}
"""By operator."""
