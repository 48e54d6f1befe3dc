"""Small graphs that between them run every shader, with awkward shapes: what ``wgllm check`` runs without a model.

A ``Case`` is plain data, for any executor. All numbers are deterministic.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wgllm.backends.base import Array, Ints, LoadOptions
from wgllm.check_experts import expert_cases
from wgllm.formats.model_file import TensorView
from wgllm.graph import OUT_ROWS, ROWS, SLOTS, Graph, GraphBuilder
from wgllm.quant import QuantFormat, all_formats, format_by_name
from wgllm.quant.random_blocks import random_blocks

Inputs = dict[str, Array | Ints]

# Numbers where exp, tanh and cubes leave float32.
_FAR = np.array(
    [0, -0.0, 1e-30, 1e-4, -1e-4, 9, -9, 11, -11, 45, -45, 90, -90, 200, -200, 7e4, -7e4, 1e14, -1e14],
    np.float32,
)


@dataclass(frozen=True)
class Case:
    name: str
    graph: Graph
    weights: Mapping[str, TensorView]
    options: LoadOptions
    steps: tuple[Inputs, ...]
    """The inputs of each step, ``pos`` and ``slot`` always among them."""


def kernel_cases() -> Iterator[Case]:
    for fmt in all_formats():
        yield _format_case(fmt)
    for name, outputs in (("F32", (1, 7, 31, 33, 257)), ("Q4_0", (1, 33)), ("Q6_K", (7, 257))):
        yield _awkward_products(format_by_name(name), outputs)
    # Sizes at which a card's kernels take larger tiles.
    yield _awkward_products(format_by_name("Q4_0"), (1024, 2048, 4096), rows=(1, 2, 4, 256))
    yield _awkward_products(format_by_name("Q8_0"), (33, 2048, 4096), width=2048, rows=(1, 2, 4))
    yield _awkward_products(format_by_name("Q4_K"), (33,), width=8192, rows=(1, 4, 33))
    for name in ("F32", "F16", "BF16"):
        yield _odd_widths(format_by_name(name))
    yield _element_case("elements", width=31, rows=(1, 7, 33))
    yield _element_case("elements of one row", width=257, rows=(1, 3))
    yield _far_elements()
    for width in (1, 33, 576):
        yield _norm_case(width)
    yield _rope_case()
    yield _select_case()
    for kv_type, heads, kv_heads, head_dim in (
        ("f32", 9, 3, 4),
        ("f32", 4, 1, 20),
        ("f16", 6, 2, 20),
        ("f16", 9, 3, 64),
        ("f16", 4, 1, 256),
        ("q8_0", 9, 3, 32),
        ("q8_0", 4, 1, 96),
        ("q4_0", 6, 2, 96),
        ("q4_0", 9, 3, 64),
    ):
        yield _attention_case(
            f"attention {kv_type} {heads}/{kv_heads}×{head_dim}", heads, kv_heads, head_dim, kv_type
        )
    yield _attention_case("attention q8_0 and f16", 6, 2, 32, "q8_0", "f16")
    yield _long_context_case()
    for kv_type in ("f32", "f16", "q8_0", "q4_0"):
        yield replace_options(
            _attention_case(f"textbook attention {kv_type}", 6, 2, 32, kv_type), fused_attention=False
        )
    yield from _layer_cases()
    yield from expert_cases(Drafting)


def replace_options(case: Case, **options: Any) -> Case:
    return replace(case, options=replace(case.options, **options))


class Drafting:
    """A case that is being made: a builder, and numbers that its name determines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.graph = GraphBuilder()
        self.graph.input("pos", (ROWS,))
        self.graph.input("slot", (ROWS,))
        self.weights: dict[str, TensorView] = {}
        self.random = np.random.default_rng(zlib.crc32(name.encode()))

    def numbers(self, *shape: int, size: float = 1) -> Array:
        return (self.random.standard_normal(shape) * size).astype(np.float32)

    def weight(self, name: str, fmt: QuantFormat, rows: int, width: int) -> str:
        self.weights[name] = random_weight(name, fmt, rows, width, self.random)
        return self.graph.weight(name, (rows, width), fmt.name)

    def experts(self, name: str, fmt: QuantFormat, experts: int, rows: int, width: int) -> str:
        flat = random_weight(name, fmt, experts * rows, width, self.random)
        self.weights[name] = replace(flat, shape=(experts, rows, width))
        return self.graph.weight(name, (experts, rows, width), fmt.name)

    def vector(self, name: str, values: Array) -> str:
        self.weights[name] = TensorView(name, values.shape, format_by_name("F32"), values.view(np.uint8))
        return self.graph.weight(name, values.shape, "F32")

    def result(self, name: str, op: str, *inputs: str, **attrs: object) -> str:
        """A node whose result is an output."""
        self.graph.op(name, op, *inputs, **attrs)
        self.graph.output(name)
        return name

    def done(
        self, steps: Sequence[Inputs], sizes: Mapping[str, int] | None = None, **options: str | int
    ) -> Case:
        return Case(
            self.name,
            self.graph.build(),
            self.weights,
            LoadOptions(
                {SLOTS: 1, **(sizes or {})},
                largest_step=max(len(s["pos"]) for s in steps),
                ctx_size=1 + max(int(s["pos"].max()) for s in steps),
                **options,  # type: ignore[arg-type]
            ),
            tuple(steps),
        )


def random_weight(
    name: str, fmt: QuantFormat, rows: int, width: int, random: np.random.Generator
) -> TensorView:
    """A matrix whose blocks differ in scale by orders of magnitude, some with scales that are subnormal in float16."""
    n = rows * width // fmt.block_size
    blocks = random_blocks(fmt, np.power(10.0, random.integers(-6, 1, n)), random)
    return TensorView(name, (rows, width), fmt, blocks.reshape(-1))


def _rows(n: int) -> Inputs:
    """A step of ``n`` rows of one sequence."""
    return {"pos": np.arange(n, dtype=np.int32), "slot": np.zeros(n, np.int32)}


def _format_case(fmt: QuantFormat) -> Case:
    """A format looked up, and in products of few rows and of many."""
    case = Drafting(f"format {fmt.name}")
    # An odd number of blocks, whose float16 scales share words.
    width, vocabulary = 3 * max(fmt.block_size, 32), 7
    case.graph.input("token", (ROWS,))
    case.graph.input("x", (ROWS, width), "f32")
    case.result("row", "embed", case.weight("table", fmt, vocabulary, width), "token")
    case.result("product", "matmul", "x", case.weight("w", fmt, 33, width))
    return case.done([_rows(n) | {
        "token": case.random.integers(0, vocabulary, n, dtype=np.int32), "x": case.numbers(n, width),
    } for n in (1, 3, 33)])  # fmt: skip


def _awkward_products(
    fmt: QuantFormat,
    sizes: Sequence[int],
    *,
    width: int = 0,
    rows: Sequence[int] = (1, 3, 7, 31, 32, 33, 257),
) -> Case:
    width = width or max(fmt.block_size, 64)
    case = Drafting(f"products {fmt.name} {width}→{max(sizes)}")
    case.graph.input("x", (ROWS, width), "f32")
    for outputs in sizes:
        case.result(f"y{outputs}", "matmul", "x", case.weight(f"w{outputs}", fmt, outputs, width))
    return case.done([_rows(n) | {"x": case.numbers(n, width)} for n in rows])


def _odd_widths(fmt: QuantFormat) -> Case:
    """Rows that begin and end within a word, or within the 32 numbers that shaders read at once."""
    case = Drafting(f"odd widths {fmt.name}")
    case.graph.input("token", (ROWS,))
    for width in (1, 33, 70):
        case.graph.input(f"x{width}", (ROWS, width), "f32")
        table = case.weight(f"w{width}", fmt, 7, width)
        case.result(f"row{width}", "embed", table, "token")
        case.result(f"y{width}", "matmul", f"x{width}", table)
    return case.done([_rows(n) | {
        "token": case.random.integers(0, 7, n, dtype=np.int32),
        **{f"x{width}": case.numbers(n, width) for width in (1, 33, 70)},
    } for n in (1, 7)])  # fmt: skip


def _element_case(name: str, width: int, rows: Sequence[int]) -> Case:
    """Operators on single numbers and on rows, some of them one after the other."""
    case = Drafting(name)
    for x in ("a", "b"):
        case.graph.input(x, (ROWS, width), "f32")
    case.vector("bias", case.numbers(width))
    _functions(case)
    case.result("sum", "add", "a", "b")
    case.result("biased", "add", "a", "bias")
    case.result("product", "mul", "sum", "b")
    case.result("softmax", "softmax", "product")
    return case.done([_rows(n) | {x: case.numbers(n, width, size=3) for x in ("a", "b")} for n in rows])


def _functions(case: Drafting) -> None:
    case.result("scaled", "scale", "a", factor=0.3)
    case.result("capped", "softcap", "a", cap=30.0)
    case.result("silu", "silu", "a")
    case.result("gelu tanh", "gelu_tanh", "a")
    case.result("gelu", "gelu", "a")


def _far_elements() -> Case:
    case = Drafting("far elements")
    case.graph.input("a", (ROWS, 1), "f32")
    _functions(case)
    return case.done([_rows(len(_FAR)) | {"a": _FAR[:, None]}])


def _norm_case(width: int) -> Case:
    """Norms of rows, and of the heads of rows."""
    case = Drafting(f"norms of {width}")
    case.graph.input("x", (ROWS, 3 * width), "f32")
    case.graph.op("heads", "reshape", "x", shape=(ROWS, 3, width))
    case.vector("w", case.numbers(width))
    case.vector("b", case.numbers(width))
    case.vector("long", case.numbers(3 * width))
    case.vector("of heads", case.numbers(3 * width))
    case.result("rows", "rms_norm", "x", "long", eps=1e-6, offset=1.0)
    case.result("rms", "rms_norm", "heads", "w", eps=1e-5, offset=0.0)
    case.result("layer", "layer_norm", "heads", "w", "b", eps=1e-5)
    case.result("layer plain", "layer_norm", "x", "long", eps=1e-5)
    case.result("layer heads", "layer_norm", "heads", "of heads", eps=1e-5)
    steps = [_rows(n) | {"x": case.numbers(n, 3 * width, size=30) + 40} for n in (1, 7)]
    return case.done([*steps, _rows(3) | {"x": np.zeros((3, 3 * width), np.float32)}])


def _rope_case() -> Case:
    """Both styles, of whole heads and of parts, with and without factors."""
    case = Drafting("rope")
    case.graph.input("q", (ROWS, 3, 24), "f32")
    case.vector("factors", np.array([1, 1.5, 2, 8, 32], np.float32))
    for interleaved in (False, True):
        options = {"interleaved": interleaved, "theta": 10000.0}
        case.result(f"whole {interleaved}", "rope", "q", "pos", dim=24, scale=1.0, magnitude=1.0, **options)
        case.result(
            f"part {interleaved}", "rope", "q", "pos", "factors", dim=10, scale=0.5, magnitude=1.2, **options
        )
    steps = [_rows(n) | {"q": case.numbers(n, 3, 24)} for n in (1, 7, 33)]
    steps[1]["pos"] = np.array([0, 1, 100, 101, 1000, 2999, 5000], np.int32)
    return case.done(steps)


def _select_case() -> Case:
    """Some rows to the end of a model, in any order and twice."""
    case = Drafting("selected rows")
    case.graph.input("x", (ROWS, 32), "f32")
    case.graph.input("out_rows", (OUT_ROWS,))
    case.graph.op("some", "select_rows", "x", "out_rows")
    case.graph.op("head", "matmul", "some", case.weight("w", format_by_name("Q8_0"), 33, 32))
    case.result("logits", "softcap", "head", cap=30.0)
    return case.done([
        _rows(n) | {"x": case.numbers(n, 32), "out_rows": np.array(chosen, np.int32)}
        for n, chosen in ((33, range(33)), (7, [6]), (7, [5, 0, 5]), (1, [0]))
    ])  # fmt: skip


def _attention(
    case: Drafting, heads: int, kv_heads: int, head_dim: int, window: int | None, cap: float | None
) -> str:
    """The textbook's nodes from q, k, v to values, with a state of their own; returns its cells."""
    graph = case.graph
    cells = graph.cells(window)
    for x in ("k", "v"):
        graph.state(f"{cells}.{x}.state", (SLOTS, kv_heads, cells, head_dim), "kv")
        graph.write(f"{cells}.{x}.state", "kv_write", f"{cells}.{x}.state", x, "pos", "slot")
    graph.op(f"{cells}.scores", "attn_scores", "q", f"{cells}.k.state", "slot")
    last = graph.op(f"{cells}.scaled", "scale", f"{cells}.scores", factor=head_dim**-0.5)
    if cap is not None:
        last = graph.op(f"{cells}.capped", "softcap", last, cap=cap)
    last = graph.op(f"{cells}.masked", "mask", last, f"{cells}.pos", "pos", "slot", window=window)
    last = graph.op(f"{cells}.p", "softmax", last)
    case.result(f"{cells}.values", "attn_values", last, f"{cells}.v.state", "slot")
    return cells


def _attention_case(
    name: str, heads: int, kv_heads: int, head_dim: int, kv_type: str, kv_type_v: str | None = None
) -> Case:
    """Three slots, a whole context and a window whose ring goes round; the last steps have one row each."""
    case = Drafting(name)
    case.graph.input("q", (ROWS, heads, head_dim), "f32")
    for x in ("k", "v"):
        case.graph.input(x, (ROWS, kv_heads, head_dim), "f32")
    whole = _attention(case, heads, kv_heads, head_dim, None, None)
    ring = _attention(case, heads, kv_heads, head_dim, 5, 20.0)
    steps = []
    length = [0, 0, 0]
    for counts in ((7, 0, 0), (3, 1, 4), (0, 0, 8), (5, 3, 0), (0, 2, 6), (0, 0, 1), (1, 0, 0)):
        rows = [(length[slot] + i, slot) for slot in (2, 0, 1) for i in range(counts[slot])]
        length = [a + b for a, b in zip(length, counts, strict=True)]
        steps.append(_attention_step(case, rows, heads, kv_heads, head_dim))
    sizes = {SLOTS: 3, whole: 31, ring: 5 + 8}
    kinds = {"kv_type": kv_type} | ({"kv_type_v": kv_type_v} if kv_type_v else {})
    return case.done(steps, sizes, **kinds)


def _attention_step(
    case: Drafting, rows: Sequence[tuple[int, int]], heads: int, kv_heads: int, head_dim: int
) -> Inputs:
    """``rows``: position and slot of each."""
    pos, slot = np.array(rows, np.int32).T
    return {
        "pos": pos.copy(), "slot": slot.copy(),
        "q": case.numbers(len(rows), heads, head_dim, size=3),
        "k": case.numbers(len(rows), kv_heads, head_dim, size=3),
        "v": case.numbers(len(rows), kv_heads, head_dim),
    }  # fmt: skip


def _long_context_case() -> Case:
    """More cells than most steps look at."""
    case = Drafting("long context")
    case.graph.input("q", (ROWS, 3, 4), "f32")
    for x in ("k", "v"):
        case.graph.input(x, (ROWS, 1, 4), "f32")
    cells = _attention(case, 3, 1, 4, None, None)
    spans = ((0, 250), (250, 260), (260, 261), (261, 520), (520, 521))
    steps = [_attention_step(case, [(p, 0) for p in range(*span)], 3, 1, 4) for span in spans]
    return case.done(steps, {cells: 600})


@dataclass(frozen=True)
class _Layer:
    """A transformer layer, of which all that can be is fused."""

    name: str
    formats: tuple[str, str]
    """Of queries and keys, and of all other matrices."""
    kv_type: str
    head_dim: int = 32
    heads: int = 6
    kv_heads: int = 2
    ff: int = 96
    activation: str = "silu"
    interleaved: bool = False
    bias: bool = False
    qk_norm: bool = False
    post_norm: bool = False
    factors: bool = False
    window: int | None = None
    rope: bool = True
    layer_norm: bool = False
    """In place of rms_norm, in all places but those of heads."""
    parallel: bool = False
    """The MLP reads what attention reads."""
    gate: bool = True
    bias_after: bool = False
    """Of what is added to the residual, and of an MLP's first matrix where there is no gate."""


def _layer_cases() -> Iterator[Case]:
    for layer in (
        _Layer("layer Q4_0", ("Q4_0", "Q4_0"), "f32", interleaved=True, factors=True),
        _Layer("layer Q8_0 with biases", ("Q8_0", "Q8_0"), "f16", bias=True),
        _Layer("layer with a wide MLP", ("Q4_0", "Q4_0"), "f32", ff=2048),
        _Layer("layer F16 of two formats", ("F16", "Q5_1"), "q4_0", window=9),
        _Layer("layer of odd width", ("F32", "F32"), "f32", head_dim=12, heads=3, kv_heads=1, ff=20, bias=True),
        _Layer(
            "layer of K-quants with norms", ("Q4_K", "Q6_K"), "q8_0", head_dim=64, heads=4, ff=256,
            activation="gelu_tanh", qk_norm=True, post_norm=True, window=9,
        ),
        _Layer("layer beside its MLP", ("Q4_0", "Q4_0"), "f32", rope=False, layer_norm=True, parallel=True),
        _Layer(
            "layer without a gate", ("Q8_0", "Q4_0"), "f16", bias=True, activation="gelu", layer_norm=True, gate=False,
            bias_after=True,
        ),
    ):  # fmt: skip
        yield _layer_case(layer)


def _layer_case(layer: _Layer) -> Case:
    case = Drafting(layer.name)
    g, width = case.graph, layer.heads * layer.head_dim
    first, other = map(format_by_name, layer.formats)
    case.graph.input("x", (ROWS, width), "f32")
    case.graph.input("out_rows", (OUT_ROWS,))
    g.layer = 0
    normed = _norm(case, layer, "normed", "x", width)
    last = _attention_of_layer(case, layer, normed, first, other)
    if layer.post_norm:
        last = _norm(case, layer, "out.normed", last, width)
    residual = g.op("attended", "add", "x", last)
    if not layer.parallel:
        normed = _norm(case, layer, "ff.normed", residual, width)
    if layer.gate:
        gate, up = (
            g.op(part, "matmul", normed, case.weight(f"w.{part}", other, layer.ff, width))
            for part in ("gate", "up")
        )
        both = g.op("both", "mul", g.op("active", layer.activation, gate), up)
    else:
        both = g.op("active", layer.activation, _linear(case, layer, "up", normed, other, layer.ff, width))
    last = _linear(case, layer, "down", both, other, width, layer.ff)
    if layer.post_norm:
        last = _norm(case, layer, "down.normed", last, width)
    last = g.op("made", "add", residual, last)
    g.layer = None
    last = _norm(case, layer, "last", g.op("rows", "select_rows", last, "out_rows"), width)
    case.result("logits", "matmul", last, case.weight("head", other, 33, width))
    return _layer_steps(case, layer, width)


def _norm(case: Drafting, layer: _Layer, name: str, x: str, width: int) -> str:
    w = case.vector(f"w.{name}", case.numbers(width))
    if layer.layer_norm:
        b = case.vector(f"b.{name}", case.numbers(width))
        return case.graph.op(name, "layer_norm", x, w, b, eps=1e-5)
    return case.graph.op(name, "rms_norm", x, w, eps=1e-5, offset=0.0)


def _linear(case: Drafting, layer: _Layer, name: str, x: str, fmt: QuantFormat, rows: int, width: int) -> str:
    y = case.graph.op(name, "matmul", x, case.weight(f"w.{name}", fmt, rows, width))
    if not layer.bias_after:
        return y
    return case.graph.op(f"{name}.biased", "add", y, case.vector(f"b.{name}", case.numbers(rows)))


def _attention_of_layer(
    case: Drafting, layer: _Layer, normed: str, first: QuantFormat, other: QuantFormat
) -> str:
    g, head_dim = case.graph, layer.head_dim
    width = layer.heads * head_dim
    factors = (
        [case.vector("factors", np.linspace(1, 8, head_dim // 2, dtype=np.float32))] if layer.factors else []
    )
    heads = {}
    for part, n, fmt in (
        ("q", layer.heads, first), ("k", layer.kv_heads, first), ("v", layer.kv_heads, other)
    ):  # fmt: skip
        last = g.op(part, "matmul", normed, case.weight(f"w.{part}", fmt, n * head_dim, width))
        if layer.bias:
            last = g.op(f"{part}.biased", "add", last, case.vector(f"b.{part}", case.numbers(n * head_dim)))
        last = g.op(f"{part}.heads", "reshape", last, shape=(ROWS, n, head_dim))
        if part != "v":
            if layer.qk_norm:
                last = _norm(case, layer, f"{part}.normed", last, head_dim)
            if layer.rope:
                last = g.op(
                    f"{part}.rope", "rope", last, "pos", *factors,
                    theta=10000.0, dim=head_dim, interleaved=layer.interleaved, scale=1.0, magnitude=1.0,
                )  # fmt: skip
        heads[part] = last
    cells = g.cells(layer.window)
    for part in ("k", "v"):
        state = g.state(f"{part}.state", (SLOTS, layer.kv_heads, cells, head_dim), "kv")
        g.write(state, "kv_write", state, heads[part], "pos", "slot")
    last = g.op("scores", "attn_scores", heads["q"], "k.state", "slot")
    last = g.op("scaled", "scale", last, factor=head_dim**-0.5)
    last = g.op("masked", "mask", last, f"{cells}.pos", "pos", "slot", window=layer.window)
    last = g.op("values", "attn_values", g.op("probs", "softmax", last), "v.state", "slot")
    last = g.op("flat", "reshape", last, shape=(ROWS, width))
    return _linear(case, layer, "out", last, other, width, width)


def _layer_steps(case: Drafting, layer: _Layer, width: int) -> Case:
    """Of few rows, of more than kernels for few take, and of one."""
    steps: list[Inputs] = []
    start = 0
    for rows in (1, 3, 33, 1):
        steps.append({
            "x": case.numbers(rows, width), "pos": np.arange(start, start + rows, dtype=np.int32),
            "slot": np.zeros(rows, np.int32), "out_rows": np.array([rows - 1], np.int32),
        })  # fmt: skip
        start += rows
    cells = "cells" if layer.window is None else f"cells.w{layer.window}"
    size = 64 if layer.window is None else layer.window + 33
    return case.done(steps, {cells: size}, kv_type=layer.kv_type)
