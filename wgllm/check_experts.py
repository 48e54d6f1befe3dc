"""Cases of ``wgllm check`` for mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wgllm.graph import ROWS
from wgllm.quant import QuantFormat, format_by_name

if TYPE_CHECKING:
    from wgllm.check_cases import Case, Drafting


def expert_cases(draft: type[Drafting]) -> Iterator[Case]:
    for experts, count in ((2, 1), (5, 5), (60, 4), (128, 8), (300, 7)):
        yield _router(draft, experts, count)
    # The kernels are those of plain products, which meet every format: here, one of each family.
    for name in ("F16", "Q5_1", "Q6_K"):
        yield _products(draft, format_by_name(name), experts=5, chosen=2, rows=(1, 33))
    # Tiles of 64 rows on cards; rows that are not whole groups; many experts, most of which are chosen by few.
    yield _products(draft, format_by_name("Q8_0"), experts=2, chosen=1, rows=(1, 129), width=64)
    yield _products(draft, format_by_name("F32"), experts=3, chosen=2, rows=(1, 9), width=20, own=True)
    yield _products(draft, format_by_name("Q4_0"), experts=40, chosen=3, rows=(9, 33), width=64, own=True)
    for layer in (
        _Layer("Q4_0", ("Q4_0", "Q4_0"), experts=7, chosen=2),
        _Layer("K-quants", ("Q4_K", "Q6_K"), width=256, d_ff=256, experts=5, chosen=3, activation="gelu_tanh"),
        _Layer("odd width", ("F32", "F32"), width=36, d_ff=20, experts=4, chosen=4, shared=True),
    ):  # fmt: skip
        yield _layer_case(draft, layer)


def _rows(n: int) -> dict[str, np.ndarray]:
    return {"pos": np.arange(n, dtype=np.int32), "slot": np.zeros(n, np.int32)}


def _router(draft: type[Drafting], experts: int, count: int) -> Case:
    """Who is chosen, by logits many of which are equal in some rows; zeros of both signs, and far ones."""
    case = draft(f"router {count} of {experts}")
    case.graph.input("logits", (ROWS, experts), "f32")
    case.graph.input("made", (ROWS, count, 33), "f32")
    for normalized in (False, True):
        names = (f"ids {normalized}", f"weights {normalized}")
        case.graph.several(
            names, "top_experts", "logits",
            count=count, normalized=normalized, scale=2.5 if normalized else 1.0,
        )  # fmt: skip
        for name in names:
            case.graph.output(name)
        case.result(f"sum {normalized}", "weighted_sum", "made", names[1])
    steps = []
    for n in (1, 7, 33):
        logits = case.numbers(n, experts, size=4)
        logits[1::4] = np.round(logits[1::4] / 4)
        logits[2::4] = np.where(logits[2::4] > 0, np.float32(0), np.float32(-0.0))
        logits[3::4] *= np.float32(1e30)
        steps.append(_rows(n) | {"logits": logits, "made": case.numbers(n, count, 33)})
    return case.done(steps)


def _products(
    draft: type[Drafting],
    fmt: QuantFormat,
    *,
    experts: int,
    chosen: int,
    rows: Sequence[int],
    width: int = 0,
    own: bool = False,
) -> Case:
    """Rows that their experts share, or that each expert has for itself; what is chosen is an input."""
    width = width or 3 * max(fmt.block_size, 32)
    case = draft(f"experts {fmt.name} {chosen} of {experts}×{width}")
    case.graph.input("ids", (ROWS, chosen), "i32")
    shape = (chosen, width) if own else (width,)
    case.graph.input("x", (ROWS, *shape), "f32")
    case.result("y", "expert_matmul", "x", case.experts("w", fmt, experts, 33, width), "ids")
    return case.done(
        [_rows(n) | {"ids": _choices(case, n, experts, chosen), "x": case.numbers(n, *shape)} for n in rows]
    )


def _choices(case: Drafting, rows: int, experts: int, chosen: int) -> np.ndarray:
    """Different experts for each row, some of which are chosen much more often than others."""
    likes = case.random.random((rows, experts)) + np.linspace(0, 1, experts)
    return np.argsort(-likes, axis=1)[:, :chosen].astype(np.int32)


@dataclass(frozen=True)
class _Layer:
    """Of a transformer, with experts."""

    name: str
    formats: tuple[str, str]
    """Of gate and up, and of down."""
    experts: int
    chosen: int
    width: int = 96
    d_ff: int = 64
    activation: str = "silu"
    shared: bool = False


def _layer_case(draft: type[Drafting], layer: _Layer) -> Case:
    case = draft(f"layer of experts, {layer.name}")
    g, width = case.graph, layer.width
    first, other = map(format_by_name, layer.formats)
    g.input("x", (ROWS, width), "f32")
    g.layer = 0
    residual = "x"
    logits = g.op("logits", "matmul", "x", case.weight("router", format_by_name("F32"), layer.experts, width))
    ids, weights = g.several(
        ("ids", "weights"), "top_experts", logits, count=layer.chosen, normalized=False, scale=1.0
    )
    if layer.shared:
        w = case.vector("w.let", case.numbers(width, size=0.3))
        down = g.op("shared", "matmul", "x", case.weight("w.shared", other, width, width))
        residual = g.op("and.shared", "add", "x", g.op("let", "gate_rows", down, "x", w))
    gate, up = (
        g.op(part, "expert_matmul", "x", case.experts(f"w.{part}", first, layer.experts, layer.d_ff, width), ids)
        for part in ("gate", "up")
    )  # fmt: skip
    both = g.op("both", "mul", g.op("active", layer.activation, gate), up)
    w = case.experts("w.down", other, layer.experts, width, layer.d_ff)
    total = g.op("total", "weighted_sum", g.op("down", "expert_matmul", both, w, ids), weights)
    case.result("y", "add", residual, total)
    return case.done([_rows(n) | {"x": case.numbers(n, width)} for n in (33, 1)])
