"""Tensors made of others: any part of them is what the whole has there."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgllm.backends.fills import _Blocks
from wgllm.formats.model_file import TensorView
from wgllm.formats.views import DerivedView, QuantizedView, RowsView, ShareView, StackedView, TransposedView
from wgllm.plan import Rows
from wgllm.quant import format_by_name

FLOATS = ("F32", "F16", "BF16")


def stored(shape: tuple[int, ...], name: str = "F32", seed: int = 0) -> TensorView:
    fmt = format_by_name(name)
    values = np.random.default_rng(seed).standard_normal((int(np.prod(shape)), 1)).astype(np.float32)
    return TensorView("w.weight", shape, fmt, fmt.quantize_blocks(values).reshape(-1))


def check_parts(view: TensorView, data: st.DataObject) -> None:
    """``blocks``, ``rows``, ``gather`` and ``sample`` of any part beside the whole."""
    whole = view.array().reshape(view.n_rows, -1)
    size = view.format.type_size
    raw = view.data.reshape(-1, size)
    assert view.nbytes == raw.size
    stop = data.draw(st.integers(0, len(raw)))
    start = data.draw(st.integers(0, stop))
    assert np.array_equal(view.blocks(start, stop), raw[start:stop])
    first = data.draw(st.integers(0, view.n_rows))
    assert np.array_equal(view.rows(first), whole[first:])
    rows = data.draw(st.lists(st.integers(0, view.n_rows - 1), max_size=5))
    assert np.array_equal(view.gather(np.array(rows, np.int32)), whole[rows])
    at = data.draw(st.integers(0, raw.size))
    assert view.sample(at, at + 7) == raw.tobytes()[at : at + 7]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(FLOATS), st.integers(1, 4), st.integers(1, 3))
def test_stacked(data: st.DataObject, fmt: str, n: int, rows: int) -> None:
    parts = [stored((rows, 5), fmt, seed) for seed in range(n)]
    view = StackedView("s", parts)
    assert view.shape == (n, rows, 5)
    assert np.array_equal(view.array(), np.stack([p.array() for p in parts]))
    check_parts(view, data)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(FLOATS))
def test_rows(data: st.DataObject, fmt: str) -> None:
    source = stored((9, 4), fmt)
    bounds = st.tuples(st.integers(0, 8), st.integers(1, 9)).filter(lambda run: run[0] < run[1])
    runs = data.draw(st.lists(bounds, min_size=1, max_size=4))
    view = RowsView("r", source, runs)
    assert np.array_equal(view.array(), np.concatenate([source.array()[a:b] for a, b in runs]))
    check_parts(view, data)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(FLOATS), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_shares(data: st.DataObject, fmt: str, n: int, rows: int, of: int) -> None:
    source = stored((n, of * rows, 5), fmt)
    for number, expected in enumerate(np.split(source.array(), of, axis=1)):
        view = ShareView("s", source, number, of)
        assert view.shape == (n, rows, 5)
        assert np.array_equal(view.array(), expected)
        check_parts(view, data)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(FLOATS), st.integers(1, 6), st.integers(1, 6))
def test_transposed(data: st.DataObject, fmt: str, inputs: int, outputs: int) -> None:
    source = stored((inputs, outputs), fmt)
    view = TransposedView("t", source)
    assert np.array_equal(view.array(), source.array().T)
    check_parts(view, data)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(FLOATS), st.sampled_from(["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16"]))
def test_quantized(data: st.DataObject, fmt: str, to: str) -> None:
    source, target = stored((5, 64), fmt), format_by_name(to)
    view = QuantizedView(source, target)
    blocks = target.quantize_blocks(source.rows().reshape(-1, target.block_size))
    assert np.array_equal(view.data, blocks.reshape(-1))
    check_parts(view, data)
    assert type(view.kept()) is TensorView and np.array_equal(view.kept().data, view.data)


def test_a_bias_is_cut_like_its_matrix() -> None:
    bias = stored((6,))
    view = RowsView("b", bias, [(4, 6), (0, 2)])
    assert view.shape == (4,) and np.array_equal(view.array(), bias.array()[[4, 5, 0, 1]])


@pytest.mark.parametrize("kind", ["stored", "stacked", "transposed", "quantized"])
def test_a_part_and_the_numbers_of_any_view(kind: str) -> None:
    made: dict[str, TensorView] = {
        "stored": stored((6, 32)),
        "stacked": StackedView("w.weight", [stored((32,), seed=i) for i in range(6)]),
        "transposed": TransposedView("w.weight", stored((32, 6))),
        "quantized": QuantizedView(stored((6, 32)), format_by_name("Q8_0")),
    }
    view = made[kind]
    part, flat = view.part(2, 3), view.flat()
    assert part.name == flat.name == "w.weight" and part.shape == (3, 32) and flat.shape == (192,)
    assert np.array_equal(part.array(), view.array()[2:5])
    assert np.array_equal(flat.array(), view.array().reshape(-1))
    # Used again and again, only what has to be made anew is taken into memory.
    assert (type(part.kept()) is TensorView) == (kind != "stacked")
    assert np.array_equal(part.kept().array(), part.array())
    assert np.array_equal(flat.kept().array(), flat.array())


def test_views_of_views() -> None:
    parts = [TransposedView("t", stored((32, 4), seed=seed)) for seed in range(3)]
    view = QuantizedView(StackedView("s", parts), format_by_name("Q8_0"))
    assert view.shape == (3, 4, 32) and np.abs(view.array()[2] - parts[2].array()).max() < 0.02
    away: list[int] = []
    source = TensorView("w", (1, 32), format_by_name("F32"), np.zeros(128, np.uint8), lambda: away.append(1))
    QuantizedView(StackedView("s", [source, source]), format_by_name("Q8_0")).forget()
    assert away == [1, 1]


def test_what_is_kept_of_a_stack_is_made_once() -> None:
    parts = [QuantizedView(stored((2, 32), seed=seed), format_by_name("Q8_0")) for seed in range(2)]
    view = StackedView("s", parts)
    kept = view.kept()
    assert isinstance(kept, StackedView) and all(type(part) is TensorView for part in kept.parts)
    assert np.array_equal(kept.data, view.data)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape or format"):
        StackedView("s", [stored((2, 3)), stored((3, 2))])
    for shape in ((2, 3, 4), (4, 4)):
        with pytest.raises(ValueError, match="2 equal shares"):
            ShareView("s", stored(shape), 0, 2)
    with pytest.raises(ValueError, match="are not within 4"):
        RowsView("r", stored((4, 2)), [(2, 5)])
    with pytest.raises(ValueError, match="single numbers"):
        QuantizedView(stored((2, 33)), format_by_name("Q8_0"))


def test_quantizing_takes_memory_for_a_piece_not_for_the_tensor() -> None:
    source = stored((4096, 1024), "BF16")  # 8 MB, 16 MB as float32
    view = QuantizedView(source, format_by_name("Q4_0"))
    tracemalloc.start()
    try:
        for start in range(0, view.n_blocks, 8192):
            view.blocks(start, start + 8192)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("form", ["stacked", "shares"])
def test_packing_experts_takes_memory_for_a_piece_not_for_a_stack(form: str) -> None:
    if form == "stacked":
        part = stored((512, 1024), "F16")  # 1 MiB, the same for each of 32 experts
        view: DerivedView = StackedView("s", [part] * 32)
    else:
        view = ShareView("s", stored((32, 512, 1024), "F16"), 1, 2)
    blocks = _Blocks(view, Rows("s", 3, view.n_rows))
    made = 0
    tracemalloc.start()
    try:
        for _, piece in view.format.layout(len(blocks)).pieces(blocks):
            made += piece.size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two pieces of 4 MiB: what is read, and what is made of it.
    assert made == view.nbytes - 3 * 2048 and peak < 10 << 20 < view.nbytes
