"""The kernels of mixtures of experts, each beside NumPy, with few workgroups."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.gpu import Gpu
from tests.kernels.test_formats import activations
from tests.kernels.test_products import least_subgroup
from tests.tolerances import KERNEL_DOT, KERNEL_ELEMENT
from wgllm.backends import numpy as reference
from wgllm.check_cases import random_weight
from wgllm.expert_shape import Chosen
from wgllm.formats.model_file import TensorView
from wgllm.product_shape import Choice, Meeting, Product, Target, shape
from wgllm.quant import format_by_name
from wgllm.quant.base import F32
from wgllm.wgsl import compose

Ints = NDArray[np.int32]


def choices(rows: int, count: int, experts: int) -> Ints:
    """Different ones for each row; the last are liked more."""
    rng = np.random.default_rng(rows + count + experts)
    likes = rng.random((rows, experts)) + np.linspace(0, 1, experts)
    return np.argsort(-likes, axis=1)[:, :count].astype(np.int32)


def sort(gpu: Gpu, ids: Ints, experts: int, tile: int, groups: int = 1) -> tuple[Ints, Ints]:
    """The experts of tiles, and the rows of each tile."""
    chosen = Chosen(len(ids), ids.shape[1], experts)
    tiles = chosen.tiles(tile)
    constants = {"ROWS": ids.size, "EXPERTS": experts, "TILE_ROWS": tile, "TILES": tiles}
    source = compose("kernels/sort_experts.wgsl", constants=constants)
    made = np.full(tiles * (tile + 1), 12345, np.int32)
    made = gpu.run(source, "sort_experts", [ids, made], groups=groups).view(np.int32)
    return made[:tiles], made[tiles:].reshape(tiles, tile)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("tile", [1, 4, 32])
@pytest.mark.parametrize(
    ("rows", "count", "experts"), [(1, 1, 1), (1, 8, 128), (7, 2, 5), (33, 4, 300), (64, 2, 3)]
)
def test_sorting(gpu: Gpu, rows: int, count: int, experts: int, tile: int, groups: int) -> None:
    ids = choices(rows, count, experts)
    of_tiles, places = sort(gpu, ids, experts, tile, groups)
    used = of_tiles >= 0
    assert not used[np.count_nonzero(used) :].any()  # those without an expert are the last
    flat = ids.reshape(-1)
    expected: list[list[int]] = []
    owners: list[int] = []
    for expert in range(experts):
        mine = np.flatnonzero(flat == expert).tolist()
        for i in range(0, len(mine), tile):
            part = mine[i : i + tile]
            expected.append(part + [-1] * (tile - len(part)))
            owners.append(expert)
    np.testing.assert_array_equal(of_tiles[used], owners)
    np.testing.assert_array_equal(places[used], expected)


def test_rows_of_no_expert_are_left_out(gpu: Gpu) -> None:
    ids = np.array([[2, -1], [7, 0], [3, 2]], np.int32)
    of_tiles, places = sort(gpu, ids, 3, 2)
    assert of_tiles[:2].tolist() == [0, 2] and (of_tiles[2:] == -1).all()
    assert places[:2].tolist() == [[3, -1], [0, 5]]


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("rows", "count", "experts"), [(1, 1, 1), (5, 8, 128), (7, 3, 64), (2, 65, 65), (3, 9, 1000)]
)
def test_top_experts(gpu: Gpu, rows: int, count: int, experts: int, normalized: bool) -> None:
    rng = np.random.default_rng(rows + experts)
    logits = (rng.standard_normal((rows, experts)) * 5).astype(np.float32)
    logits[-1] = np.round(logits[-1])  # many are equal
    constants = {
        "ROWS": rows, "EXPERTS": experts, "COUNT": count, "NORMALIZED": normalized, "SCALE": 1.5,
    }  # fmt: skip
    source = compose("kernels/top_experts.wgsl", constants=constants)
    made = np.full((rows, count), -7, np.int32)
    want_ids, want = reference.top_experts(logits, count=count, normalized=normalized, scale=1.5)
    buffers = [logits, made, made.view(np.float32)]
    ids = gpu.run(source, "top_experts", buffers, written=1, groups=2).view(np.int32)
    np.testing.assert_array_equal(ids.reshape(rows, count), want_ids)
    weights = gpu.run(source, "top_experts", buffers, written=2, groups=2).view(np.float32)
    np.testing.assert_allclose(
        weights.reshape(rows, count), want, rtol=4 * KERNEL_ELEMENT, atol=KERNEL_ELEMENT
    )


def test_ids_are_those_of_experts_whatever_the_logits(gpu: Gpu) -> None:
    logits = np.full((4, 6), np.nan, np.float32)
    logits[1:] = np.arange(6)
    logits[1, 2], logits[2, 2:4], logits[3] = np.nan, (np.inf, -np.inf), -np.inf
    constants = {"ROWS": 4, "EXPERTS": 6, "COUNT": 6, "NORMALIZED": True}
    source = compose("kernels/top_experts.wgsl", constants=constants)
    made = np.full((4, 6), -7, np.int32)
    ids = gpu.run(source, "top_experts", [logits, made, made.view(np.float32)], written=1).view(np.int32)
    want = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 1, 0, 2], [2, 5, 4, 1, 0, 3], [0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(ids.reshape(4, 6), want)


KINDS: dict[str, tuple[Meeting, Choice]] = {
    "matvec": ("chosen", Choice("matvec", 32)),
    "wide": ("chosen", Choice("matvec_wide", 32, 1, 4)),
    "software": ("chosen", Choice("matmul_software", 16, 1, 2)),
    "software-shared": ("chosen", Choice("matmul_software", 16, 1, 4, subgroups=True)),
    "sorted-software": ("sorted", Choice("matmul_software", 16, 4, 2)),
    "sorted-software-shared": ("sorted", Choice("matmul_software", 32, 8, 1, subgroups=True)),
    "sorted-matmul": ("sorted", Choice("matmul", 64, 4, 32)),
    "sorted-matmul-64": ("sorted", Choice("matmul", 128, 8, 64)),
}
OUTPUTS, INPUTS, EXPERTS = 37, 96, 6


def experts_weight(outputs: int, width: int) -> TensorView:
    return random_weight("w", format_by_name("Q5_0"), outputs, width, np.random.default_rng(outputs + width))


def run(
    gpu: Gpu,
    meeting: Meeting,
    choice: Choice,
    x: F32,
    ids: Ints,
    w: TensorView,
    *,
    first: int,
    count: int,
    groups: int,
) -> F32:
    """Of experts ``first : first + count``: y [pairs, OUTPUTS], NaN in rows of others."""
    tile = choice.outputs if choice.kernel == "matmul" else choice.rows
    pairs = ids.size
    buffers = {"x": x, "y": np.full((pairs, OUTPUTS), np.nan, np.float32), "ids": ids}
    rows, constants = pairs, {"SHARED": 1 if x.ndim == 3 else ids.shape[1]}
    if meeting == "sorted":
        of_tiles, places = sort(gpu, ids, EXPERTS, tile)
        buffers["sorted"] = np.concatenate([of_tiles, places.reshape(-1)])
        rows, constants["TILE_ROWS"] = places.size, tile
    subgroup = least_subgroup(gpu) if choice.subgroups else 0
    made = shape(Product(rows, INPUTS, OUTPUTS, w.format), Target(subgroup=subgroup), choice, meeting)
    part = w.data.reshape(EXPERTS, -1)[first : first + count]
    packed = w.format.pack(part.reshape(-1, w.format.type_size))
    buffers["weights"] = packed.words
    place = {"EXPERTS": count, "FIRST_EXPERT": first, "EXPERT_ROWS": OUTPUTS, "OUT_WIDTH": OUTPUTS}
    source = compose(
        *made.files,
        constants={**constants, **place, **made.constants, **packed.layout.constants},
        features=made.features,
    )
    y = gpu.run(source, made.entry, [buffers[n] for n in made.bindings], groups=groups, written=2)
    return y.view(np.float32).reshape(pairs, OUTPUTS)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("first", "count"), [(0, EXPERTS), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_products(request: pytest.FixtureRequest, kind: str, first: int, count: int, own: bool) -> None:
    meeting, choice = KINDS[kind]
    gpu: Gpu = request.getfixturevalue("subgroup_gpu" if choice.subgroups else "gpu")
    ids = choices(19, 3, EXPERTS)
    w = experts_weight(EXPERTS * OUTPUTS, INPUTS)
    x = activations(57 if own else 19, INPUTS)
    x = x.reshape(19, 3, INPUTS) if own else x
    y = run(gpu, meeting, choice, x, ids, w, first=first, count=count, groups=5)
    matrices = w.array().reshape(EXPERTS, OUTPUTS, INPUTS)[ids.reshape(-1)]
    rows = x.reshape(-1, INPUTS) if own else x.repeat(3, axis=0)
    want, size = (np.einsum("pk,pok->po", f(rows), f(matrices)) for f in (np.asarray, np.abs))
    here = (ids.reshape(-1) >= first) & (ids.reshape(-1) < first + count)
    assert np.isnan(y[~here]).all()
    assert (np.abs(y - want)[here] <= KERNEL_DOT * size[here] + KERNEL_ELEMENT * np.abs(want)[here]).all()


SUMMED = {
    "wide": Choice("matvec_wide", 32, 1, 4),
    "wide-1": Choice("matvec_wide", 64, 1, 1),
    "software": Choice("matmul_software", 16, 1, 2),
    "matvec": Choice("matvec", 32),
}


@pytest.mark.parametrize("choice", SUMMED.values(), ids=SUMMED)
@pytest.mark.parametrize(("rows", "chosen", "groups"), [(1, 1, 1), (1, 6, 3), (5, 2, 7)])
def test_weighted_sums(gpu: Gpu, choice: Choice, rows: int, chosen: int, groups: int) -> None:
    ids = choices(rows, chosen, EXPERTS)
    w = experts_weight(EXPERTS * OUTPUTS, INPUTS)
    x = activations(rows * chosen, INPUTS)
    shares = np.random.default_rng(1).random((rows, chosen)).astype(np.float32)
    residual = activations(rows, OUTPUTS)
    product = Product(rows, chosen * INPUTS, OUTPUTS, w.format, "weighted", "added")
    made = shape(product, Target(), choice, "summed")
    packed = w.format.pack(w.data.reshape(-1, w.format.type_size))
    buffers = {
        "weights": packed.words, "x": x, "y": np.full((rows, OUTPUTS), np.nan, np.float32), "ids": ids,
        "shares": shares, "residual": residual,
    }  # fmt: skip
    place = {"CHOSEN": chosen, "EXPERTS": EXPERTS, "OUT_WIDTH": OUTPUTS}
    source = compose(*made.files, constants={**place, **made.constants, **packed.layout.constants})
    y = gpu.run(source, made.entry, [buffers[n] for n in made.bindings], groups=groups, written=2)
    matrices = w.array().reshape(EXPERTS, OUTPUTS, INPUTS)[ids]
    weighted = x.reshape(rows, chosen, INPUTS) * shares[..., None]
    want, size = (np.einsum("rmk,rmok->ro", f(weighted), f(matrices)) for f in (np.asarray, np.abs))
    error = np.abs(y.view(np.float32).reshape(rows, OUTPUTS) - want - residual)
    assert (error <= KERNEL_DOT * size + KERNEL_ELEMENT * np.abs(residual)).all()


@pytest.mark.parametrize(("rows", "count", "width"), [(1, 1, 1), (3, 8, 65), (33, 2, 7)])
def test_weighted_sum(gpu: Gpu, rows: int, count: int, width: int) -> None:
    x, weights = activations(rows * count, width), activations(rows, count)
    residual = activations(rows, width)
    source = compose("kernels/weighted_sum.wgsl", constants={"ROWS": rows, "COUNT": count, "WIDTH": width})
    want = reference.weighted_sum(x.reshape(rows, count, width), weights)
    size = reference.weighted_sum(np.abs(x).reshape(rows, count, width), np.abs(weights))
    for entry, more in (("weighted_sum", np.float32(0)), ("weighted_add", residual)):
        buffers = [
            x,
            weights,
            np.zeros((rows, width), np.float32),
            *([residual] if entry == "weighted_add" else []),
        ]
        y = gpu.run(source, entry, buffers, written=2).view(np.float32).reshape(rows, width)
        assert (np.abs(y - want - more) <= KERNEL_ELEMENT * (size + np.abs(more))).all()


@pytest.mark.parametrize(("rows", "width", "inputs"), [(1, 1, 1), (5, 65, 33), (7, 3, 256)])
def test_gate_rows(gpu: Gpu, rows: int, width: int, inputs: int) -> None:
    a, x, w = activations(rows, width), activations(rows, inputs), activations(1, inputs)[0]
    x[-1] *= 1e4  # so far that nothing, or everything, is let through
    source = compose("kernels/gate_rows.wgsl", constants={"ROWS": rows, "WIDTH": width, "INPUTS": inputs})
    y = gpu.run(source, "gate_rows", [a, x, w, np.zeros_like(a)]).view(np.float32).reshape(a.shape)
    with np.errstate(over="ignore"):
        want = reference.gate_rows(a, x, w)
    sums = KERNEL_DOT * (np.abs(x) @ np.abs(w))[:, None]
    assert (np.abs(y - want) <= (sums + KERNEL_ELEMENT) * np.abs(a)).all()
