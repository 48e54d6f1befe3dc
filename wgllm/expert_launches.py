"""The shaders of mixtures of experts.

Their products are those of ``wgllm.fused_launches``, composed with other files of ``shaders/rows``: of a few rows each
pair of a row and an expert is a row of its own (``chosen``); of many the pairs are sorted by expert first (``sorted``);
and where all experts lie in one binding, the weighted sum of what a row's experts make is one product (``summed``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from wgllm.expert_shape import Chosen, choose, makes_tiles, tile_rows
from wgllm.fused_launches import bound, up16
from wgllm.graph import Graph, Node
from wgllm.launches import Context, Launch, Shader, Shard, Stack, vectors
from wgllm.plan import Region, step_widths
from wgllm.product_shape import After, Meeting, Product, shape
from wgllm.quant import QuantFormat
from wgllm.wgsl import Constant


def _chosen(c: Context, ids: str, weight: str, rows: int = 0) -> Chosen:
    """``rows``: of another schedule."""
    experts = c.places.graph.tensors[weight].shape[0]
    assert isinstance(experts, int)
    of_step, count = c.shape(ids)
    return Chosen(rows or of_step, count, experts)


# top_experts, weighted_sum, gate_rows


def _top_experts(c: Context) -> Iterator[Launch]:
    (logits,) = c.node.inputs
    rows, experts = c.shape(logits)
    attrs = c.node.attrs
    constants: dict[str, Constant] = {
        "ROWS": rows,
        "EXPERTS": experts,
        "COUNT": attrs["count"],
        "NORMALIZED": attrs["normalized"],
        "SCALE": float(attrs["scale"]),
    }
    yield c.launch("top_experts", constants, c.regions(), groups=rows, cost=rows * experts * experts)


def _weighted_sum(c: Context) -> Iterator[Launch]:
    x, weights = c.node.inputs
    (out,) = c.node.outputs
    yield _sum(c, c.region(x), weights, out)


def _sum(c: Context, x: Region, weights: str, out: str, residual: Region | None = None) -> Launch:
    rows, count = c.shape(weights)
    width = c.shape(out)[1]
    return c.launch(
        "weighted_sum",
        {"ROWS": rows, "COUNT": count, "WIDTH": width},
        bound({"x": x, "weights": c.region(weights), "y": c.region(out), "residual": residual},
              ("x", "weights", "y", "residual")),
        work=rows * width,
        cost=rows * count * width,
        entry="weighted_sum" if residual is None else "weighted_add",
    )  # fmt: skip


def _gate_rows(c: Context) -> Iterator[Launch]:
    a, x, _ = c.node.inputs
    rows, width = c.shape(a)
    inputs = c.shape(x)[1]
    constants = {"ROWS": rows, "WIDTH": width, "INPUTS": inputs}
    yield c.launch("gate_rows", constants, c.regions(), groups=rows, cost=rows * (inputs + width))


# Products


@dataclass(frozen=True)
class _Rows:
    """What a product of experts reads and makes."""

    x: Region
    inputs: int
    shared: int
    """How many experts take the same row of x."""
    y: Region
    width: int
    """Of y [pairs, width]."""


def _products(
    c: Context, stack: Stack, ids: str, rows: _Rows, after: After = "plain", *, side_by_side: bool = False
) -> Iterator[Launch]:
    """Each pair's row of y; a dispatch for each shard, after one that sorts if that is worth it.

    ``side_by_side``: what both matrices of a pair make, without a gate.
    """
    chosen = _chosen(c, ids, stack.tensors[0])
    fmt, shards = c.shards(stack)
    tile = _tile(c, stack, ids, rows.inputs, after)
    meeting: Meeting = "chosen"
    given: dict[str, Region | None] = {"x": rows.x, "y": rows.y, "ids": c.region(ids)}
    constants: dict[str, Constant] = {"SHARED": rows.shared, "OUT_WIDTH": rows.width}
    all_rows = chosen.pairs
    if tile > 1:
        meeting, all_rows = "sorted", chosen.tiles(tile) * tile
        given["sorted"] = _sorted(c, chosen, tile)
        constants["TILE_ROWS"] = tile
        yield _sort(c, ids, chosen, tile)
    for shard in shards:
        product = Product(all_rows, rows.inputs, shard.count * (2 if side_by_side else 1), fmt, after=after)
        made = shape(product, c.places.target, choose(product, tile, c.places.target), meeting)
        first, count = shard.experts
        place = {
            "EXPERTS": count,
            "FIRST_EXPERT": first,
            "EXPERT_ROWS": shard.count,
            "OUT_FIRST": shard.first,
        }
        yield Launch(
            made.files,
            made.entry,
            {**constants, **place, **made.constants, **shard.layout.constants},
            bound({**given, "weights": shard.region}, made.bindings),
            made.groups,
            product.parts * chosen.pairs * product.inputs * product.outputs * count // chosen.experts,
            made.features,
        )


def _tile(c: Context, stack: Stack, ids: str, inputs: int, after: After) -> int:
    """Rows of a tile in this schedule."""
    chosen = _chosen(c, ids, stack.tensors[0])
    tile = tile_rows(chosen, inputs, c.places.target)
    # A kernel without a gate can't make one of parts of experts.
    return 1 if makes_tiles(tile, c.places.target) and after != "plain" else tile


def _sort(c: Context, ids: str, chosen: Chosen, tile: int) -> Launch:
    constants = {
        "ROWS": chosen.pairs,
        "EXPERTS": chosen.experts,
        "TILE_ROWS": tile,
        "TILES": chosen.tiles(tile),
    }
    return c.launch(
        "sort_experts",
        constants,
        [c.region(ids), _sorted(c, chosen, tile)],
        groups=1,
        cost=2 * chosen.pairs * chosen.experts,
    )


def _sorted(c: Context, chosen: Chosen, tile: int) -> Region:
    return c.places.scratch(c.node, "sorted")._replace(size=up16(_sorted_bytes(chosen, tile)))


def _sorted_bytes(chosen: Chosen, tile: int) -> int:
    return 4 * chosen.tiles(tile) * (tile + 1)


def _sorted_scratch(c: Context, ids: str, weight: str, inputs: int) -> dict[str, int]:
    """What suffices for all schedules up to this one."""
    most = 0
    for rows in step_widths(c.width.rows):
        chosen = _chosen(c, ids, weight, rows)
        if (tile := tile_rows(chosen, inputs, c.places.target)) > 1:
            most = max(most, _sorted_bytes(chosen, tile))
    return {"sorted": most} if most else {}


# expert_matmul


def _expert_matmul(c: Context) -> Iterator[Launch]:
    x, w, ids = c.node.inputs
    (out,) = c.node.outputs
    yield from _products(c, Stack((w,)), ids, _rows(c, x, ids, c.region(out), c.shape(out)[2]))


def _rows(c: Context, x: str, ids: str, y: Region, width: int) -> _Rows:
    shared = c.shape(ids)[1] if len(c.shape(x)) == 2 else 1
    return _Rows(c.region(x), c.shape(x)[-1], shared, y, width)


def _expert_matmul_scratch(c: Context) -> Mapping[str, int]:
    x, w, ids = c.node.inputs[:3]
    return _sorted_scratch(c, ids, w, c.shape(x)[-1])


# expert_gated


def _expert_gated(c: Context) -> Iterator[Launch]:
    x, gate, up, ids = c.node.inputs
    (out,) = c.node.outputs
    width = c.shape(out)[2]
    stack = Stack((gate, up), paired=True)
    after: After = "gated_silu" if c.node.attrs["activation"] == "silu" else "gated_gelu_tanh"
    if not _both_at_once(c, stack, ids):
        yield from _products(c, stack, ids, _rows(c, x, ids, c.region(out), width), after)
        return
    # Tiled products have no gate: both parts side by side, and then together.
    count = c.numbers(out)
    both = c.places.scratch(c.node, "both")._replace(size=up16(8 * count))
    yield from _products(c, stack, ids, _rows(c, x, ids, both, 2 * width), side_by_side=True)
    yield c.launch(
        "elementwise", {"COUNT": count, "WIDTH": width}, [both, c.region(out)], work=count, entry=after
    )


def _both_at_once(c: Context, stack: Stack, ids: str) -> bool:
    """Whether tiles are made, which takes all outputs of an expert."""
    width = c.shape(c.node.inputs[0])[-1]
    tile = tile_rows(_chosen(c, ids, stack.tensors[0]), width, c.places.target)
    whole = c.shape(c.node.outputs[0])[2]
    return makes_tiles(tile, c.places.target) and all(s.count == whole for s in c.shards(stack)[1])


def _expert_gated_scratch(c: Context) -> Mapping[str, int]:
    x, gate, up, ids = c.node.inputs
    made = _sorted_scratch(c, ids, gate, c.shape(x)[-1])
    if _both_at_once(c, Stack((gate, up), paired=True), ids):
        made["both"] = 8 * c.numbers(c.node.outputs[0])
    return made


# expert_add


def _expert_add(c: Context) -> Iterator[Launch]:
    x, w, ids, weights, residual = c.node.inputs
    (out,) = c.node.outputs
    if not _summed(c):
        width = c.shape(out)[1]
        products = c.places.scratch(c.node, "products")
        products = products._replace(size=up16(_products_bytes(c)))
        yield from _products(c, Stack((w,)), ids, _rows(c, x, ids, products, width))
        yield _sum(c, products, weights, out, c.region(residual))
        return
    rows, count, inputs = c.shape(x)
    fmt, (shard,) = _whole(c, w)
    product = Product(rows, count * inputs, shard.count, fmt, "weighted", "added")
    made = shape(product, c.places.target, choose(product, 1, c.places.target), "summed")
    given = {
        "weights": shard.region,
        "x": c.region(x),
        "y": c.region(out),
        "ids": c.region(ids),
        "shares": c.region(weights),
        "residual": c.region(residual),
    }
    yield Launch(
        made.files,
        made.entry,
        {
            "CHOSEN": count,
            "EXPERTS": shard.experts[1],
            "OUT_WIDTH": shard.count,
            **made.constants,
            **shard.layout.constants,
        },
        bound(given, made.bindings),
        made.groups,
        product.multiplications,
        made.features,
    )


def _whole(c: Context, weight: str) -> tuple[QuantFormat, list[Shard]]:
    return c.shards(Stack((weight,)))


def _summed(c: Context) -> bool:
    """Whether one product makes the weighted sum too: each row reads its experts by itself, all in one binding."""
    x, w, ids = c.node.inputs[:3]
    inputs = c.shape(x)[2]
    alone = inputs % 32 == 0 and tile_rows(_chosen(c, ids, w), inputs, c.places.target) == 1
    return alone and len(_whole(c, w)[1]) == 1


def _products_bytes(c: Context) -> int:
    rows, count = c.shape(c.node.inputs[2])
    return 4 * rows * count * c.shape(c.node.outputs[0])[1]


def _expert_add_scratch(c: Context) -> Mapping[str, int]:
    made = dict(_expert_matmul_scratch(c))
    if not _summed(c):  # where it is not, in narrower schedules neither, or with less
        made["products"] = _products_bytes(c)
    return made


def _experts(*indices: int) -> Callable[[Graph, Node], Sequence[Stack]]:
    """The experts that are the inputs ``indices``; two of them paired."""
    return lambda graph, node: [Stack(tuple(node.inputs[i] for i in indices), paired=len(indices) > 1)]


EXPERTS: Mapping[str, Shader] = {
    "top_experts": Shader(_top_experts),
    "expert_matmul": Shader(_expert_matmul, _experts(1), scratch=_expert_matmul_scratch),
    "weighted_sum": Shader(_weighted_sum),
    "gate_rows": Shader(_gate_rows, vectors=vectors),
    "expert_gated": Shader(_expert_gated, _experts(1, 2), scratch=_expert_gated_scratch),
    "expert_add": Shader(_expert_add, _experts(1), scratch=_expert_add_scratch),
}
"""By operator."""
