"""KV state of every type: written, and read by the textbook attention kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.gpu import Gpu
from tests.tolerances import KERNEL_ELEMENT, KERNEL_KV_OTHERWISE
from wgllm.backends import numpy as reference
from wgllm.quant import format_by_name
from wgllm.quant.base import F32
from wgllm.quant.packing import state_layout
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
    if kv_type in ("f32", "f16"):
        return state.astype(kv_type[0] + str(int(kv_type[1:]) // 8)).reshape(-1).view(np.uint32)
    layout = state_layout(kv_type, state.size // state.shape[-1], state.shape[-1])
    blocks = format_by_name(kv_type).quantize_blocks(state.reshape(-1, 32))
    words = np.zeros(layout.size, np.uint32)
    words[: layout.scales] = np.ascontiguousarray(blocks[:, 2:]).reshape(-1).view(np.uint32)
    scales = (
        np.ascontiguousarray(blocks[:, :2]).view(np.uint16).reshape(-1, state.shape[-1] // 32)
    )  # [cells, blocks]
    padded = np.pad(scales, ((0, 0), (0, scales.shape[1] % 2)))
    words[layout.scales : layout.scales + padded.size // 2] = padded.reshape(-1).view(np.uint32)
    return words


def from_words(words: U32, kv_type: str, shape: tuple[int, ...]) -> F32:
    if kv_type in ("f32", "f16"):
        return words.view(kv_type[0] + str(int(kv_type[1:]) // 8)).astype(np.float32).reshape(shape)
    fmt = format_by_name(kv_type)
    per_cell = shape[-1] // 32
    cells = math.prod(shape[:-1])
    layout = state_layout(kv_type, cells, shape[-1])
    blocks = np.zeros((cells * per_cell, fmt.type_size), np.uint8)
    blocks[:, 2:] = words[: layout.scales].view(np.uint8).reshape(len(blocks), -1)
    halves = words[layout.scales :].view(np.uint16)[: cells * (per_cell + per_cell % 2)].reshape(cells, -1)
    blocks[:, :2] = np.ascontiguousarray(halves[:, :per_cell]).reshape(-1, 1).view(np.uint8)
    out = np.empty((len(blocks), 32), np.float32)
    fmt.dequantize_blocks(blocks, out)
    return out.reshape(shape)


def test_the_tests_own_way_there_and_back() -> None:
    state = random(2, 1, 3, 96)
    for kv_type in ("f32", "f16", "q8_0", "q4_0"):
        back = from_words(to_words(state, kv_type), kv_type, state.shape)
        want = state if kv_type == "f32" else reference.round_as(state, kv_type)
        np.testing.assert_array_equal(back, want)


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
    kernel = "kernels/kv_write.wgsl"
    if kv_type.startswith("q"):
        kernel = "kernels/kv_write_quantized.wgsl"
        constants["SCALES"] = state_layout(kv_type, SLOTS * kv_heads * CELLS, head_dim).scales
    source = compose(kernel, constants=constants)
    got = gpu.run(source, f"kv_write_{kv_type}", [x, POS, SLOT, words], groups=2)
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
    ("kv_type", "heads", "kv_heads", "head_dim", "cells"),
    [
        *(("f32", 1, 1, 4, 1), ("f32", 9, 3, 16, 33), ("f32", 6, 2, 20, 31)),
        *(("f16", 1, 1, 4, 1), ("f16", 9, 3, 20, 33)),
        *(("q8_0", 3, 1, 32, 7), ("q8_0", 9, 3, 96, 33), ("q8_0", 4, 2, 64, 31)),
        *(("q4_0", 3, 1, 32, 7), ("q4_0", 9, 3, 96, 33), ("q4_0", 4, 2, 64, 31)),
    ],
)
def test_attention_scores_and_values(
    gpu: Gpu, kv_type: str, heads: int, kv_heads: int, head_dim: int, cells: int
) -> None:
    state = random(SLOTS, kv_heads, cells, head_dim)
    words = to_words(state, kv_type)
    state = from_words(words, kv_type, state.shape)
    q, p = random(len(SLOT), heads, head_dim), random(len(SLOT), heads, cells)
    constants = {
        "ROWS": len(SLOT),
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "CELLS": cells,
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
