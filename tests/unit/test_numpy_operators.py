"""NumPy's operators beside the same mathematics in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.tolerances import NUMPY_ELEMENT
from wgllm import ops
from wgllm.backends.numpy import layer_norm
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


def test_layer_norm_of_shapes_that_do_not_fit_is_refused() -> None:
    rule = ops.OPS["layer_norm"].shape
    assert rule([("rows", 64), (64,), (64,)], {}) == [("rows", 64)]
    wrong: list[list[Shape]] = [[("rows", 64), (32,), (32,)], [("rows", 64), (64,), (1,)]]
    for shapes in wrong:
        with pytest.raises(ops.ShapeError, match="layer_norm can't take"):
            rule(shapes, {})
