"""The kernels that read no packed weights, each beside the NumPy operator that it stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.gpu import Gpu
from tests.tolerances import KERNEL_ELEMENT
from wgllm.backends import numpy as reference
from wgllm.quant.base import F32
from wgllm.wgsl import Constant, compose

Ints = NDArray[np.int32]
HIDDEN = np.finfo(np.float32).min


def random(*shape: int, size: float = 1) -> F32:
    return (np.random.default_rng(math.prod(shape)).standard_normal(shape) * size).astype(np.float32)


def assert_close(got: F32, want: F32) -> None:
    np.testing.assert_allclose(got, want, rtol=KERNEL_ELEMENT, atol=KERNEL_ELEMENT)


@pytest.mark.parametrize(
    ("rows", "width", "offset", "workgroup"),
    [
        (1, 576, 0.0, 64),
        (7, 1, 0.0, 64),
        (31, 33, 1.0, 32),
        (3, 257, 0.0, 256),
        (2, 31, 1.0, 1),
        (9, 64, 0.0, 64),
    ],
)
def test_rms_norm(gpu: Gpu, rows: int, width: int, offset: float, workgroup: int) -> None:
    x, w = random(rows, width, size=30), random(width)
    constants = {"ROWS": rows, "WIDTH": width, "EPS": 1e-5, "OFFSET": offset, "WORKGROUP": workgroup}
    source = compose("kernels/rms_norm.wgsl", constants=constants)
    got = gpu.run(source, "rms_norm", [x, w, np.zeros_like(x)]).view(np.float32).reshape(x.shape)
    assert_close(got, reference.rms_norm(x, w, eps=1e-5, offset=offset))


def test_rms_norm_of_zeros_is_zero(gpu: Gpu) -> None:
    x = np.zeros((2, 33), np.float32)
    source = compose("kernels/rms_norm.wgsl", constants={"ROWS": 2, "WIDTH": 33, "EPS": 1e-6})
    assert not gpu.run(source, "rms_norm", [x, random(33), x + 1]).view(np.float32).any()


@pytest.mark.parametrize(
    ("rows", "width", "workgroup"),
    [(1, 576, 64), (7, 1, 64), (31, 33, 32), (3, 257, 256), (2, 31, 1), (9, 64, 64)],
)
def test_layer_norm(gpu: Gpu, rows: int, width: int, workgroup: int) -> None:
    x, w, b = random(rows, width, size=30) + 100, random(width), random(width + 1)[1:]
    constants = {"ROWS": rows, "WIDTH": width, "EPS": 1e-5, "WORKGROUP": workgroup}
    source = compose("kernels/layer_norm.wgsl", constants=constants)
    got = gpu.run(source, "layer_norm", [x, w, np.zeros_like(x), b], written=2)
    got = got.view(np.float32).reshape(x.shape)
    # Of means near 100 the last place is some of what is left when they are taken away.
    size = np.abs(w) * 100 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    error = np.abs(got - reference.layer_norm(x, w, b, eps=1e-5))
    assert (error <= KERNEL_ELEMENT * (1 + size)).all()


def test_layer_norm_of_equals_is_its_bias(gpu: Gpu) -> None:
    x, b = np.full((2, 33), 3, np.float32), random(33)
    source = compose("kernels/layer_norm.wgsl", constants={"ROWS": 2, "WIDTH": 33, "EPS": 1e-6})
    got = gpu.run(source, "layer_norm", [x, random(33) + 1, np.zeros_like(x), b], written=2)
    got = got.view(np.float32)
    np.testing.assert_array_equal(got.reshape(x.shape), [b, b])


@pytest.mark.parametrize("heads", [1, 3])
def test_layer_norm_without_a_bias_and_with_a_weight_for_each_head(gpu: Gpu, heads: int) -> None:
    x, w = random(7, heads, 33, size=30), random(heads * 33)
    constants = {"ROWS": 7 * heads, "WIDTH": 33, "EPS": 1e-5, "HEADS": heads}
    source = compose("kernels/layer_norm.wgsl", constants=constants)
    got = gpu.run(source, "layer_norm_plain", [x, w, np.zeros_like(x)]).view(np.float32)
    assert_close(got.reshape(x.shape), reference.layer_norm(x, w, eps=1e-5))


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("rows", "heads", "head_dim", "dim"), [(1, 1, 2, 2), (7, 3, 16, 16), (31, 5, 24, 10)]
)
def test_rope(gpu: Gpu, interleaved: bool, rows: int, heads: int, head_dim: int, dim: int) -> None:
    x = random(rows, heads, head_dim)
    pos = np.random.default_rng(0).integers(0, 5000, rows).astype(np.int32)
    pos[0] = 0
    options = {"theta": 10000.0, "dim": dim, "scale": 0.5}
    table = reference.RopeTable(dim, 10000.0, 0.5, None).turns(np.arange(5000, dtype=np.int32)).pairs
    constants = {"ROWS": rows, "HEADS": heads, "HEAD_DIM": head_dim, "DIM": dim, "INTERLEAVED": interleaved}
    source = compose("kernels/rope.wgsl", constants=constants)
    got = gpu.run(source, "rope", [x, pos, table.view(np.float32), np.zeros_like(x)]).view(np.float32)
    assert_close(got.reshape(x.shape), reference.rope(x, pos, interleaved=interleaved, **options))


def elementwise(gpu: Gpu, entry: str, a: F32, b: F32 | None = None, **constants: Constant) -> F32:
    source = compose("kernels/elementwise.wgsl", constants={"COUNT": a.size, **constants})
    buffers = [a, np.zeros_like(a)] if b is None else [a, np.zeros_like(a), b]
    return gpu.run(source, entry, buffers, written=1).view(np.float32).reshape(a.shape)


# Numbers that Gemma's activations reach, and where exp, tanh and cubes leave float32.
FAR = np.float32(
    [0, -0.0, 1e-30, 1e-4, -1e-4, 9, -9, 11, -11, 45, -45, 90, -90, 200, -200, 7e4, -7e4, 1e14, -1e14]
)


@pytest.mark.parametrize("x", [random(1), random(7, 31, size=3), FAR], ids=["one", "many", "far"])
def test_functions(gpu: Gpu, x: F32) -> None:
    assert_close(elementwise(gpu, "scale", x, PARAMETER=0.3), reference.scale(x, factor=0.3))
    assert_close(elementwise(gpu, "softcap", x, PARAMETER=30.0) / 30, reference.softcap(x, cap=30.0) / 30)
    with np.errstate(over="ignore"):
        assert_close(elementwise(gpu, "silu", x), reference.silu(x))
        assert_close(elementwise(gpu, "gelu_tanh", x), reference.gelu_tanh(x))
        assert_close(elementwise(gpu, "gelu", x), reference.gelu(x))


@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (257, 3)])
def test_gates(gpu: Gpu, shape: tuple[int, int]) -> None:
    rows, width = shape
    a = random(rows, 2 * width, size=3)
    gate, up = np.split(a, 2, axis=1)
    for entry, function in (("gated_silu", reference.silu), ("gated_gelu_tanh", reference.gelu_tanh)):
        source = compose("kernels/elementwise.wgsl", constants={"COUNT": rows * width, "WIDTH": width})
        got = gpu.run(source, entry, [a, np.zeros_like(up)]).view(np.float32).reshape(shape)
        np.testing.assert_allclose(got, function(gate) * up, rtol=2 * KERNEL_ELEMENT, atol=2 * KERNEL_ELEMENT)


@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (257, 3)])
def test_sums_and_products(gpu: Gpu, shape: tuple[int, int]) -> None:
    a, b = random(*shape), random(*shape)[::-1].copy()
    np.testing.assert_array_equal(elementwise(gpu, "add", a, b), a + b)
    np.testing.assert_array_equal(elementwise(gpu, "mul", a, b), a * b)
    bias = random(shape[1])
    np.testing.assert_array_equal(elementwise(gpu, "add_row", a, bias, WIDTH=shape[1]), a + bias)
