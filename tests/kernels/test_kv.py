"""KV state of every type: written, and read by the textbook attention kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.gpu import Gpu
from tests.tolerances import KERNEL_ELEMENT, KERNEL_KV_OTHERWISE
from wgllm.backends import numpy as reference
from wgllm.quant.base import F32
from wgllm.quant.state_words import decode, encode, state_layout
from wgllm.wgsl import compose

U32 = NDArray[np.uint32]

SLOTS, CELLS = 3, 9
# The rows of a step never meet in a cell. The last one is padding.
POS = np.int32([0, 8, 10, 30, 4, 5, -1])
SLOT = np.int32([0, 0, 0, 2, 1, 1, 2])


def random(*shape: int, size: float = 1) -> F32:
    return (np.random.default_rng(math.prod(shape)).standard_normal(shape) * size).astype(np.float32)


def to_words(state: F32, kv_type: str) -> U32:
    """``state`` [S, Hkv, C, D] as a buffer of its type."""
    cells = state.reshape(-1, state.shape[-1])
    layout = state_layout(kv_type, *cells.shape)
    words = np.zeros(layout.size, np.uint32)
    numbers, scales = layout.ranges(0, len(cells))
    words[numbers], words[scales] = encode(cells, kv_type)
    return words


def from_words(words: U32, kv_type: str, shape: tuple[int, ...]) -> F32:
    n, head_dim = math.prod(shape[:-1]), shape[-1]
    numbers, scales = state_layout(kv_type, n, head_dim).ranges(0, n)
    return decode(words[numbers], words[scales], kv_type, head_dim).reshape(shape)


@pytest.mark.parametrize(
    ("kv_type", "kv_heads", "head_dim"),
    [
        *(("f32", 1, 4), ("f32", 3, 32), ("f16", 1, 4), ("f16", 3, 20)),
        *(
            ("q8_0", 1, 32),
            ("q8_0", 3, 64),
            ("q8_0", 2, 96),
            ("q4_0", 1, 32),
            ("q4_0", 3, 64),
            ("q4_0", 2, 96),
        ),
    ],
)
def test_kv_write(gpu: Gpu, kv_type: str, kv_heads: int, head_dim: int) -> None:
    shape = (SLOTS, kv_heads, CELLS, head_dim)
    x = random(len(POS), kv_heads, head_dim, size=100)
    x[1] = 0  # a block of zeros has no scale
    words = to_words(random(*shape), kv_type)
    constants = {"ROWS": len(POS), "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "CELLS": CELLS}
    if kv_type.startswith("q"):
        constants["SCALES"] = state_layout(kv_type, SLOTS * kv_heads * CELLS, head_dim).scales
    source = compose("kernels/kv_write.wgsl", f"kv_store/{kv_type}.wgsl", constants=constants)
    got = gpu.run(source, "kv_write", [x, POS, SLOT, words], groups=2)
    before, after = from_words(words, kv_type, shape), from_words(got, kv_type, shape)
    want = before.copy()
    reference.kv_write(want, x[:-1], POS[:-1], SLOT[:-1], kv_type=kv_type)
    written = np.zeros(shape[:3], bool)
    written[SLOT[:-1], :, POS[:-1] % CELLS] = True
    np.testing.assert_array_equal(after[~written], before[~written])
    if kv_type == "f32":
        np.testing.assert_array_equal(after, want)
        return
    # WGSL lets a host round float16 numbers either way, and divide with errors that move a number on the border
    # between two quants.
    step = np.abs(want).max(axis=-1, keepdims=True) / {"f16": 1024, "q8_0": 127, "q4_0": 8}[kv_type]
    error = np.abs(after - want)
    assert (error <= 1.01 * step).all()
    assert (error > 0.01 * step).mean() <= KERNEL_KV_OTHERWISE


@pytest.mark.parametrize(
    ("kv_type", "heads", "kv_heads", "head_dim", "cells", "seen"),
    [
        *(
            ("f32", 1, 1, 4, 1, 1),
            ("f32", 9, 3, 16, 33, 33),
            ("f32", 6, 2, 20, 31, 7),
            ("f32", 6, 2, 20, 31, 1),
        ),
        *(("f16", 1, 1, 4, 1, 1), ("f16", 9, 3, 20, 33, 33), ("f16", 9, 3, 20, 33, 32)),
        *(("q8_0", 3, 1, 32, 7, 7), ("q8_0", 9, 3, 96, 33, 1), ("q8_0", 4, 2, 64, 31, 30)),
        *(("q4_0", 3, 1, 32, 7, 7), ("q4_0", 9, 3, 96, 33, 1), ("q4_0", 4, 2, 64, 31, 30)),
    ],
)
def test_attention_scores_and_values(
    gpu: Gpu, kv_type: str, heads: int, kv_heads: int, head_dim: int, cells: int, seen: int
) -> None:
    state = random(SLOTS, kv_heads, cells, head_dim)
    words = to_words(state, kv_type)
    state = from_words(words, kv_type, state.shape)[:, :, :seen]
    q, p = random(len(SLOT), heads, head_dim), random(len(SLOT), heads, seen)
    constants = {
        "ROWS": len(SLOT),
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "CELLS": cells,
        "SEEN": seen,
    }
    if kv_type.startswith("q"):
        constants["SCALES"] = state_layout(kv_type, SLOTS * kv_heads * cells, head_dim).scales
    for kernel, x, want in (
        ("attn_scores", q, reference.attn_scores(q, state, SLOT)),
        ("attn_values", p, reference.attn_values(p, state, SLOT)),
    ):
        source = compose(f"kernels/{kernel}.wgsl", f"kv/{kv_type}.wgsl", constants=constants)
        got = gpu.run(source, kernel, [x, words, SLOT, np.zeros_like(want)]).view(np.float32)
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=KERNEL_ELEMENT, atol=KERNEL_ELEMENT)
