"""KV state as the words of a GPU buffer: where cells lie, and the way there and back."""

from __future__ import annotations

import numpy as np
import pytest

from wgllm.backends.numpy import round_as
from wgllm.kv_types import KV_TYPES
from wgllm.quant.base import F32
from wgllm.quant.state_words import decode, encode, state_layout

every_type = pytest.mark.parametrize("kv_type", KV_TYPES)


def random(n_cells: int, head_dim: int) -> F32:
    size = 10.0 ** np.arange(-3, n_cells - 3)[:, None] % 1000
    return (np.random.default_rng(n_cells).standard_normal((n_cells, head_dim)) * size).astype(np.float32)


@pytest.mark.parametrize(
    ("kv_type", "head_dim", "scales", "size"),
    [
        ("f32", 64, 3 * 64, 192),
        ("f16", 20, 30, 32),
        ("q8_0", 64, 48, 52),
        ("q8_0", 96, 72, 80),
        ("q4_0", 32, 12, 16),
    ],
)
def test_state_of_three_cells(kv_type: str, head_dim: int, scales: int, size: int) -> None:
    layout = state_layout(kv_type, 3, head_dim)
    assert (layout.scales, layout.size) == (scales, size)


@pytest.mark.parametrize(("kv_type", "head_dim"), [("f16", 6), ("q8_0", 80), ("q4_0", 16)])
def test_heads_that_are_no_whole_blocks_are_refused(kv_type: str, head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"heads of {head_dim} numbers can't be kept as {kv_type}"):
        state_layout(kv_type, 1, head_dim)


@every_type
@pytest.mark.parametrize("head_dim", [32, 64, 96])
def test_there_and_back(kv_type: str, head_dim: int) -> None:
    cells = random(5, head_dim)
    words = encode(cells, kv_type)
    assert all(w.dtype == np.uint32 and w.ndim == 1 for w in words)
    back = decode(*words, kv_type, head_dim)
    np.testing.assert_array_equal(back, round_as(cells, kv_type))
    for again, first in zip(encode(back, kv_type), words, strict=True):
        np.testing.assert_array_equal(again, first)


@every_type
def test_no_cells_and_cells_of_zeros(kv_type: str) -> None:
    assert decode(*encode(random(0, 32), kv_type), kv_type, 32).shape == (0, 32)
    zeros = np.zeros((2, 32), np.float32)
    np.testing.assert_array_equal(decode(*encode(zeros, kv_type), kv_type, 32), zeros)


@every_type
def test_cells_are_written_and_read_in_ranges(kv_type: str) -> None:
    cells = random(7, 96)
    layout = state_layout(kv_type, 7, 96)
    buffer = np.zeros(layout.size, np.uint32)
    for first, n in ((4, 3), (0, 1), (1, 3), (7, 0)):
        for place, words in zip(
            layout.ranges(first, n), encode(cells[first : first + n], kv_type), strict=True
        ):
            buffer[place] = words
    whole = encode(cells, kv_type)
    np.testing.assert_array_equal(buffer[: sum(map(len, whole))], np.concatenate(whole))
    numbers, scales = layout.ranges(2, 4)
    np.testing.assert_array_equal(
        decode(buffer[numbers], buffer[scales], kv_type, 96), round_as(cells[2:6], kv_type)
    )


def test_cells_that_are_not_there_are_refused() -> None:
    layout = state_layout("q8_0", 3, 32)
    for first, n in ((-1, 1), (2, 2), (3, -1)):
        with pytest.raises(ValueError, match="in a state of 3"):
            layout.ranges(first, n)
    numbers, scales = encode(random(3, 32), "q8_0")
    for wrong in ((numbers[:-1], scales), (numbers, scales[:-1])):
        with pytest.raises(ValueError, match="are no q8_0 cells of 32 numbers"):
            decode(*wrong, "q8_0", 32)
