"""Every block format through the kernels that read it: rows looked up, and products with few rows and with many."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.gpu import Gpu
from tests.tolerances import KERNEL_DEQUANTIZE, KERNEL_DOT
from wgllm.check_cases import random_weight
from wgllm.formats.model_file import TensorView
from wgllm.quant import QuantFormat, all_formats, format_by_name
from wgllm.quant.base import F32
from wgllm.wgsl import compose

FORMATS = list(all_formats())
every_product = pytest.mark.parametrize("kernel", ["matvec", "matmul"])
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=[f.name for f in FORMATS])


def weights(fmt: QuantFormat, rows: int, width: int) -> TensorView:
    """A matrix whose blocks differ in scale by orders of magnitude, some with scales that are subnormal in float16."""
    return random_weight("w", fmt, rows, width, np.random.default_rng(rows * width))


def activations(rows: int, width: int) -> F32:
    return np.random.default_rng(width).standard_normal((rows, width)).astype(np.float32)


def embed(gpu: Gpu, table: TensorView, token: list[int], *, first: int = 0, groups: int = 3) -> F32:
    """The rows that a part of a table from row ``first`` on gives; the others are 7."""
    fmt, width = table.format, table.shape[1]
    packed = fmt.pack(table.data.reshape(-1, fmt.type_size))
    constants = {"ROWS": len(token), "WIDTH": width, "COUNT": table.shape[0], "FIRST": first}
    source = compose("kernels/embed.wgsl", fmt.wgsl, constants=packed.layout.constants | constants)
    y = np.full((len(token), width), 7, np.float32)
    return (
        gpu.run(source, "embed", [packed.words, np.int32(token), y], groups=groups)
        .view(np.float32)
        .reshape(y.shape)
    )


def product(
    gpu: Gpu,
    kernel: str,
    w: TensorView,
    x: F32,
    *,
    out_width: int | None = None,
    out_first: int = 0,
    groups: int = 3,
) -> F32:
    """x wᵀ in columns ``out_first`` on; the others are 7."""
    fmt, (outputs, inputs) = w.format, w.shape
    packed = fmt.pack(w.data.reshape(-1, fmt.type_size))
    y = np.full((len(x), out_width or outputs), 7, np.float32)
    constants = {
        "ROWS": len(x),
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "OUT_WIDTH": y.shape[1],
        "OUT_FIRST": out_first,
    }
    files = [f"kernels/{kernel}.wgsl", fmt.wgsl, "rows/whole.wgsl", "inputs/plain.wgsl", "outputs/plain.wgsl"]
    source = compose(*files, constants=packed.layout.constants | constants)
    return gpu.run(source, kernel, [packed.words, x, y], groups=groups).view(np.float32).reshape(y.shape)


def assert_rows(got: F32, want: F32) -> None:
    flat = want.reshape(-1)
    groups = np.pad(flat, (0, -len(flat) % 32)).reshape(-1, 32)
    largest = np.abs(groups).max(axis=1, keepdims=True).repeat(32, axis=1).reshape(-1)[: len(flat)]
    error = np.abs(got.reshape(-1) - flat)
    assert not (error > KERNEL_DEQUANTIZE * largest).any(), f"worst {np.nanmax(error / largest)}"


def assert_products(got: F32, w: TensorView, x: F32) -> None:
    want = x @ w.array().T
    size = np.abs(x) @ np.abs(w.array()).T
    error = np.abs(got - want)
    assert not (error > KERNEL_DOT * size).any(), f"worst {np.nanmax(error / size)} of Σ |x w|"


@every_format
def test_embed(gpu: Gpu, fmt: QuantFormat) -> None:
    table = weights(fmt, 7, 768)  # 21 blocks of the K-quants: an odd number of float16 scales
    token = [6, 0, 3, 3, 5, 1, 2, 4, 0]
    assert_rows(embed(gpu, table, token), table.array()[token])


def test_powers_of_two_of_every_size(gpu: Gpu) -> None:
    # The two least are subnormal, which a device may take for 0; the largest times the largest level is infinite.
    fmt = format_by_name("MXFP4")
    table = weights(fmt, 249, 32)
    blocks = table.data.reshape(249, -1)
    blocks[:, 0] = np.arange(4, 253)
    np.testing.assert_array_equal(embed(gpu, table, list(range(249))), table.array())


@every_product
@every_format
def test_products(gpu: Gpu, fmt: QuantFormat, kernel: str) -> None:
    w, x = weights(fmt, 33, 768), activations(3, 768)
    assert_products(product(gpu, kernel, w, x), w, x)


@pytest.mark.parametrize("name", ["F32", "Q4_0", "Q6_K"])
@pytest.mark.parametrize(("outputs", "rows"), [(1, 1), (1, 7), (7, 31), (31, 2), (32, 1), (257, 1)])
def test_matvec_of_awkward_shapes(gpu: Gpu, name: str, outputs: int, rows: int) -> None:
    w, x = weights(format_by_name(name), outputs, 256), activations(rows, 256)
    assert_products(product(gpu, "matvec", w, x, groups=2), w, x)


@pytest.mark.parametrize("name", ["F32", "Q4_0", "Q6_K"])
@pytest.mark.parametrize(
    ("outputs", "rows", "groups"),
    [
        *((1, 1, 1), (7, 7, 2), (31, 31, 5), (32, 32, 3), (33, 33, 2), (33, 1, 3)),
        *((257, 7, 4), (1, 257, 4), (31, 257, 20), (257, 33, 1), (257, 257, 7)),
    ],
)
def test_matmul_of_awkward_shapes(gpu: Gpu, name: str, outputs: int, rows: int, groups: int) -> None:
    w, x = weights(format_by_name(name), outputs, 256), activations(rows, 256)
    assert_products(product(gpu, "matmul", w, x, groups=groups), w, x)


@pytest.mark.parametrize("name", ["F16", "Q8_0"])
@pytest.mark.parametrize("width", [32, 96])
def test_matmul_of_few_groups(gpu: Gpu, name: str, width: int) -> None:
    w, x = weights(format_by_name(name), 40, width), activations(35, width)
    assert_products(product(gpu, "matmul", w, x), w, x)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("width", [1, 7, 31, 33, 257])
def test_rows_of_single_numbers_may_have_any_width(gpu: Gpu, name: str, width: int) -> None:
    w, x = weights(format_by_name(name), 9, width), activations(3, width)
    assert_products(product(gpu, "matvec", w, x), w, x)
    token = [8, 0, 5, 5]
    np.testing.assert_array_equal(embed(gpu, w, token), w.array()[token])


@pytest.mark.parametrize("width", [32, 40])
def test_a_table_in_two_parts(gpu: Gpu, width: int) -> None:
    whole = weights(format_by_name("F16"), 10, width)
    half = len(whole.data) // 2
    token = [9, 4, 5, 0]
    for first in (0, 5):
        data = whole.data[half:] if first else whole.data[:half]
        part = TensorView("part", (5, width), whole.format, data)
        got = embed(gpu, part, token, first=first)
        for row, t in zip(got, token, strict=True):
            mine = first <= t < first + 5
            np.testing.assert_array_equal(row, whole.array()[t] if mine else np.full(width, 7, np.float32))


@every_product
@pytest.mark.parametrize(
    ("outputs", "rows", "first", "width"), [(5, 3, 4, 12), (37, 33, 30, 70), (33, 2, 7, 40)]
)
def test_a_matrix_that_is_a_part_of_one(
    gpu: Gpu, kernel: str, outputs: int, rows: int, first: int, width: int
) -> None:
    w, x = weights(format_by_name("Q8_0"), outputs, 64), activations(rows, 64)
    got = product(gpu, kernel, w, x, out_width=width, out_first=first)
    assert_products(got[:, first : first + outputs], w, x)
    assert (got[:, :first] == 7).all()
    assert (got[:, first + outputs :] == 7).all()


def test_more_workgroups_than_work(gpu: Gpu) -> None:
    w, x = weights(format_by_name("Q4_1"), 7, 96), activations(2, 96)
    for kernel in ("matvec", "matmul"):
        assert_products(product(gpu, kernel, w, x, groups=50), w, x)
    np.testing.assert_array_equal(embed(gpu, w, [1, 6], groups=50), w.array()[[1, 6]])
