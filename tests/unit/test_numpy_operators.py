"""NumPy's operators beside the same mathematics in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.tolerances import NUMPY_ELEMENT
from wgllm import ops
from wgllm.backends.numpy import erf, gelu, layer_norm, rope
from wgllm.graph import Shape


@pytest.mark.parametrize("shape", [(1, 64), (7, 33), (2, 3, 32), (4, 1)])
@pytest.mark.parametrize("middle", [0.0, 1000.0])
def test_layer_norm(shape: tuple[int, ...], middle: float) -> None:
    rng = np.random.default_rng(math.prod(shape))
    x = (rng.standard_normal(shape) * 30 + middle).astype(np.float32)
    w, b = rng.standard_normal((2, shape[-1])).astype(np.float32)
    before = x.copy()
    got = layer_norm(x, w, b, eps=1e-5)
    assert got.dtype == np.float32 and got.shape == shape
    np.testing.assert_array_equal(x, before)
    exact = x.astype(np.float64)
    difference = exact - exact.mean(axis=-1, keepdims=True)
    want = difference / np.sqrt((difference**2).mean(axis=-1, keepdims=True) + 1e-5) * w + b
    np.testing.assert_allclose(got, want, rtol=NUMPY_ELEMENT, atol=NUMPY_ELEMENT * (1 + middle / 30))


def test_layer_norm_without_a_bias_and_with_a_weight_for_each_head() -> None:
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((5, 3, 32)).astype(np.float32), rng.standard_normal(96).astype(np.float32)
    got = layer_norm(x, w, eps=1e-5)
    for h in range(3):
        own = w[32 * h : 32 * (h + 1)]
        np.testing.assert_array_equal(got[:, h], layer_norm(x[:, h], own, np.zeros(32, np.float32), eps=1e-5))


def test_erf_and_gelu() -> None:
    x = np.concatenate([np.linspace(-7, 7, 20001), [0, -0.0, 1e-30, 1e4, -1e4, np.inf]]).astype(np.float32)
    want = np.array([math.erf(float(v)) for v in x])
    np.testing.assert_allclose(erf(x), want, rtol=4e-7, atol=0)
    finite = x[:-1]
    exact = (
        finite.astype(np.float64) / 2 * (1 + np.array([math.erf(float(v) / math.sqrt(2)) for v in finite]))
    )
    np.testing.assert_allclose(gelu(finite), exact, rtol=NUMPY_ELEMENT, atol=NUMPY_ELEMENT)
    assert gelu(np.array([1e4, -1e4, -100], np.float32)).tolist() == [1e4, 0, 0]


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_magnitude_multiplies_what_rope_turns_and_nothing_else(interleaved: bool) -> None:
    x = np.random.default_rng(3).standard_normal((4, 2, 24)).astype(np.float32)
    pos = np.array([0, 1, 7, 300], np.int32)
    attrs = {"theta": 1e4, "dim": 10, "interleaved": interleaved, "scale": 1.0}
    plain, larger = rope(x, pos, **attrs), rope(x, pos, magnitude=1.5, **attrs)
    np.testing.assert_allclose(
        larger[..., :10], 1.5 * plain[..., :10], rtol=NUMPY_ELEMENT, atol=NUMPY_ELEMENT
    )
    np.testing.assert_array_equal(larger[..., 10:], x[..., 10:])


def test_layer_norm_of_shapes_that_do_not_fit_is_refused() -> None:
    rule = ops.OPS["layer_norm"].shape
    assert rule([("rows", 64), (64,), (64,)], {}) == [("rows", 64)]
    assert rule([("rows", 64), (64,)], {}) == [("rows", 64)]
    assert rule([("rows", 3, 64), (192,)], {}) == [("rows", 3, 64)]
    wrong: list[list[Shape]] = [
        [("rows", 64), (32,), (32,)], [("rows", 64), (64,), (1,)], [("rows", 64), (192,)], [("rows", 3, 64), (128,)],
        [("rows", 3, 64), (192,), (64,)],
    ]  # fmt: skip
    for shapes in wrong:
        with pytest.raises(ops.ShapeError, match="layer_norm can't take"):
            rule(shapes, {})
