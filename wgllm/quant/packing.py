"""The layout that shaders read: parts of the blocks apart, each part a plane that begins at 16 bytes.

A plane holds the same bytes of every block, one block after the other, so that a shader reads quants as whole
``vec4<u32>``. The layout is a function of the format and the number of blocks alone: never of a device or a tuning.
Blocks are packed in any number of pieces, and rows of a tensor begin at block borders, so that a shard of rows is
packed by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 32
"""Numbers that a shader decodes at a time. Formats of single numbers are padded to whole groups."""

Planes = tuple[tuple[int, int], ...]
"""First and last (exclusive) byte in a block of what each plane holds."""

# Blocks are copied this many bytes at a time, so that they are in a core's cache when the next plane is copied.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Layout:
    """Where the planes of ``n_blocks`` blocks lie in one buffer."""

    planes: Planes
    n_blocks: int
    offsets: tuple[int, ...]
    """Where each plane begins, in u32 words: a multiple of 4."""
    size: int
    """Of the buffer, in u32 words: a multiple of 4."""

    @property
    def constants(self) -> dict[str, int]:
        """What the format's shader needs to know: ``PLANE_0``, ``PLANE_1``, …"""
        return {f"PLANE_{i}": offset for i, offset in enumerate(self.offsets)}

    def pack_into(self, words: NDArray[np.uint32], blocks: NDArray[np.uint8], first: int = 0) -> None:
        """Puts ``blocks [n, type_size]``, which are ``first : first + n``, to their places in ``words [size]``.

        The piece that holds the last block also clears the padding. Pieces may be packed by several threads.
        """
        last = first + len(blocks)
        if words.shape != (self.size,) or not 0 <= first <= last <= self.n_blocks:
            raise ValueError(
                f"blocks {first}:{last} do not fit a layout of {self.n_blocks} in {self.size} words"
            )
        ends = (*self.offsets[1:], self.size)
        places = []  # of each plane: the bytes from its first block of this piece to its end
        for (start, stop), offset, end in zip(self.planes, self.offsets, ends, strict=True):
            place = words[offset:end].view(np.uint8)
            if last == self.n_blocks:
                place[last * (stop - start) :] = 0
            places.append(place[first * (stop - start) :])
        step = max(1, _CHUNK // blocks.shape[1])
        for at in range(0, len(blocks), step):
            chunk = blocks[at : at + step]
            for (start, stop), place in zip(self.planes, places, strict=True):
                width = stop - start
                # As one wide element per block: NumPy copies those several times as fast as rows of a few bytes.
                wide = place[at * width : (at + len(chunk)) * width].view(f"V{width}")
                np.copyto(wide, chunk[:, start:stop].view(f"V{width}")[:, 0])


@dataclass(frozen=True)
class Packed:
    """Packed blocks: what goes to the device as it is."""

    layout: Layout
    words: NDArray[np.uint32]


def layout(planes: Sequence[tuple[int, int]], n_blocks: int, block_size: int) -> Layout:
    """The layout of ``n_blocks`` blocks of ``block_size`` numbers."""
    per_group = max(1, GROUP // block_size)
    padded = -(-n_blocks // per_group) * per_group
    offsets = []
    at = 0
    for start, stop in planes:
        offsets.append(at)
        at += -(-padded * (stop - start) // 16) * 4
    return Layout(tuple(planes), n_blocks, tuple(offsets), at)


@dataclass(frozen=True)
class StateLayout:
    """Where a KV state of ``n_cells`` cells (of all slots and heads) of ``head_dim`` numbers lies in one buffer.

    f32 and f16 cells lie one after the other. q8_0 and q4_0: the quants of all blocks, then of each cell its float16
    scales, in whole words, so that no two cells share one: each can be written by itself.
    """

    scales: int
    """Where the scales begin, in u32 words; the end of the numbers when there are none."""
    size: int
    """Of the buffer, in u32 words."""


_STATE_BITS = {"f32": 32, "f16": 16, "q8_0": 8, "q4_0": 4}


def state_layout(kv_type: str, n_cells: int, head_dim: int) -> StateLayout:
    """The layout of a KV state. ``head_dim`` is a multiple of 4, of 32 for q8_0 and q4_0."""
    bits = _STATE_BITS[kv_type]
    if head_dim % (4 if bits >= 16 else GROUP):
        raise ValueError(f"heads of {head_dim} numbers can't be kept as {kv_type}")
    scales = n_cells * head_dim * bits // 32
    per_cell = 0 if bits >= 16 else (head_dim // GROUP + 1) // 2
    return StateLayout(scales, -(-(scales + n_cells * per_cell) // 4) * 4)
