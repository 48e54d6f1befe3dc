"""KV state as the words of a GPU buffer, which holds [slots, KV heads, cells, D] in the state's type.

To all functions here a cell is what one KV head keeps of one position, D numbers: cell c of head h of slot s is number
(s · heads + h) · cells + c. f32 and f16 cells lie one after the other. q8_0 and q4_0: the quants of all cells, then of
each cell its float16 scales, in whole words. So no two cells share a word, and the cells first … first + n are one
range of words for their numbers and one for their scales: ``StateLayout.ranges`` says where, ``encode`` and ``decode``
make and read what lies there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wgllm.quant import format_by_name
from wgllm.quant.base import F32
from wgllm.quant.packing import GROUP

U32 = NDArray[np.uint32]

# Of a number itself, without its share of a scale.
_BITS = {"f32": 32, "f16": 16, "q8_0": 8, "q4_0": 4}
_PLAIN = {"f32": np.float32, "f16": np.float16}


@dataclass(frozen=True)
class StateLayout:
    """Where the cells of a KV state lie in its buffer. All in u32 words."""

    n_cells: int
    """Of all slots and heads."""
    numbers_per_cell: int
    scales_per_cell: int
    """0 for f32 and f16."""

    @property
    def scales(self) -> int:
        """Where the scales begin; the end of the numbers when there are none."""
        return self.n_cells * self.numbers_per_cell

    @property
    def size(self) -> int:
        """Of the buffer: a multiple of 4."""
        return -(-(self.scales + self.n_cells * self.scales_per_cell) // 4) * 4

    def ranges(self, first: int, n: int) -> tuple[slice, slice]:
        """The words of the numbers of cells first … first + n, and those of their scales."""
        if not 0 <= first <= first + n <= self.n_cells:
            raise ValueError(f"no cells {first}:{first + n} in a state of {self.n_cells}")
        numbers, scales = self.numbers_per_cell, self.scales_per_cell
        return (
            slice(first * numbers, (first + n) * numbers),
            slice(self.scales + first * scales, self.scales + (first + n) * scales),
        )


def state_layout(kv_type: str, n_cells: int, head_dim: int) -> StateLayout:
    """The layout of a KV state. ``head_dim`` is a multiple of 4, of 32 for q8_0 and q4_0."""
    plain = kv_type in _PLAIN
    if head_dim % (4 if plain else GROUP):
        raise ValueError(f"heads of {head_dim} numbers can't be kept as {kv_type}")
    scales = 0 if plain else (head_dim // GROUP + 1) // 2
    return StateLayout(n_cells, head_dim * _BITS[kv_type] // 32, scales)


def encode(cells: F32, kv_type: str) -> tuple[U32, U32]:
    """``cells [n, D]``, rounded to ``kv_type``, as the words of their numbers and those of their scales.

    The words are [n · numbers_per_cell] and [n · scales_per_cell] of their layout, for the two ranges of n cells that
    follow each other.
    """
    n, head_dim = cells.shape
    layout = state_layout(kv_type, n, head_dim)
    if kv_type in _PLAIN:
        plain = np.ascontiguousarray(cells, _PLAIN[kv_type])
        return plain.reshape(-1).view(np.uint32), np.empty(0, np.uint32)
    per_cell = head_dim // GROUP
    blocks = format_by_name(kv_type).quantize_blocks(np.ascontiguousarray(cells).reshape(n * per_cell, GROUP))
    # Where the number of blocks is odd, the last half of a cell's scales is 0.
    halves = np.zeros((n, 2 * layout.scales_per_cell), np.uint16)
    halves[:, :per_cell] = np.ascontiguousarray(blocks[:, :2]).view(np.uint16).reshape(n, per_cell)
    quants = np.ascontiguousarray(blocks[:, 2:])
    return quants.reshape(-1).view(np.uint32), halves.reshape(-1).view(np.uint32)


def decode(numbers: U32, scales: U32, kv_type: str, head_dim: int) -> F32:
    """The cells [n, D] whose words ``encode`` made or the GPU wrote. ``numbers`` and ``scales`` are contiguous."""
    layout = state_layout(kv_type, 1, head_dim)
    n, rest = divmod(len(numbers), layout.numbers_per_cell)
    if rest or len(scales) != n * layout.scales_per_cell:
        raise ValueError(
            f"{len(numbers)} and {len(scales)} words are no {kv_type} cells of {head_dim} numbers"
        )
    if kv_type in _PLAIN:
        return numbers.view(_PLAIN[kv_type]).astype(np.float32).reshape(n, head_dim)
    fmt = format_by_name(kv_type)
    per_cell = head_dim // GROUP
    blocks = np.empty((n * per_cell, fmt.type_size), np.uint8)
    blocks[:, 2:] = numbers.view(np.uint8).reshape(len(blocks), fmt.type_size - 2)
    halves = scales.view(np.uint16).reshape(n, 2 * layout.scales_per_cell)[:, :per_cell]
    blocks[:, :2] = np.ascontiguousarray(halves).reshape(len(blocks), 1).view(np.uint8)
    cells = np.empty((n, head_dim), np.float32)
    fmt.dequantize_blocks(blocks, cells.reshape(len(blocks), GROUP))
    return cells
