"""The layout that shaders read: parts of the blocks apart, each part a plane that begins at 16 bytes.

Formats whose quants are indices have the table that they mean at the very beginning, a few KiB of each buffer: every
device reads it through its cache, whereas what becomes of a constant array of that size depends on the compiler.
A plane holds the same bytes of every block, one block after the other, so that a shader reads quants as whole
``vec4<u32>``. The layout is a function of the format and the number of blocks alone: never of a device or a tuning.
Blocks are packed in any number of pieces, and rows of a tensor begin at block borders, so that a shard of rows is
packed by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

GROUP = 32
"""Numbers that a shader decodes at a time. Formats of single numbers are padded to whole groups."""

Planes = tuple[tuple[int, int], ...]
"""First and last (exclusive) byte in a block of what each plane holds."""

# Blocks are copied about this many bytes at a time.
_PIECE = 4 << 20


class Blocks(Protocol):
    """Blocks of a format, [n, type_size], that are read a slice at a time: an array, or what makes one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Layout:
    """Where the planes of ``n_blocks`` blocks lie in one buffer."""

    planes: Planes
    n_blocks: int
    offsets: tuple[int, ...]
    """Where each plane begins, in u32 words: a multiple of 4."""
    size: int
    """Of the buffer, in u32 words: a multiple of 4."""
    table: bytes = b""
    """The format's, at the beginning of the buffer."""

    @property
    def constants(self) -> dict[str, int]:
        """What the format's shader needs to know: ``PLANE_0``, ``PLANE_1``, …"""
        return {f"PLANE_{i}": offset for i, offset in enumerate(self.offsets)}

    def pieces(self, *parts: Blocks) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Bytes of the buffer and where they begin; the rest of the buffer is zero.

        ``parts``, each [n, type_size], are together the layout's blocks in order. Each piece is a multiple of 4 bytes
        and begins at one; together they take little more memory than one does.
        """
        if (n := sum(map(len, parts))) != self.n_blocks:
            raise ValueError(f"{n} blocks do not fit a layout of {self.n_blocks}")
        if self.table:
            yield 0, np.frombuffer(self.table, np.uint8)
        step = max(16, _PIECE // parts[0].shape[1] // 16 * 16)  # 16 blocks of any plane are whole words
        for at in range(0, n, step):
            chunk = _slice(parts, at, at + step)
            for (start, stop), offset in zip(self.planes, self.offsets, strict=True):
                width = stop - start
                plane = _plane(chunk, start, stop)
                if plane.size % 4:
                    plane = np.pad(plane, (0, -plane.size % 4))
                yield 4 * offset + at * width, plane

    def read(self, start: int, stop: int, *parts: Blocks) -> NDArray[np.uint8]:
        """Bytes ``start:stop`` of the buffer alone: what lies elsewhere is not packed."""
        out = np.zeros(stop - start, np.uint8)
        if start < len(self.table):
            table = np.frombuffer(self.table, np.uint8)[start:stop]
            out[: table.size] = table
        step = max(1, _PIECE // parts[0].shape[1])
        for (left, right), offset in zip(self.planes, self.offsets, strict=True):
            width, begin = right - left, 4 * offset
            low, high = max(start, begin), min(stop, begin + self.n_blocks * width)
            last = -(-(high - begin) // width)
            for at in range((low - begin) // width, last, step) if low < high else ():
                chunk = _slice(parts, at, min(at + step, last))
                plane = _plane(chunk, left, right)
                first = begin + at * width
                inside = plane[max(0, low - first) : high - first]
                there = max(low, first) - start
                out[there : there + inside.size] = inside
        return out


def _plane(blocks: NDArray[np.uint8], left: int, right: int) -> NDArray[np.uint8]:
    """Bytes ``left:right`` of each block."""
    # As one wide element per block: NumPy copies those several times as fast as rows of a few bytes.
    return np.ascontiguousarray(blocks[:, left:right].view(f"V{right - left}")).view(np.uint8).reshape(-1)


def _slice(parts: Sequence[Blocks], first: int, last: int) -> NDArray[np.uint8]:
    """Rows ``first:last`` of the parts on top of each other; a copy only where they lie in more than one."""
    found, start = [], 0
    for part in parts:
        inside = slice(max(0, first - start), min(len(part), last - start))
        if inside.start < inside.stop:
            found.append(part[inside])
        start += len(part)
    return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True)
class Packed:
    """Packed blocks: what goes to the device as it is."""

    layout: Layout
    words: NDArray[np.uint32]


def layout(planes: Sequence[tuple[int, int]], n_blocks: int, block_size: int, table: bytes = b"") -> Layout:
    """The layout of ``n_blocks`` blocks of ``block_size`` numbers; ``table`` is a multiple of 16 bytes."""
    per_group = max(1, GROUP // block_size)
    padded = -(-n_blocks // per_group) * per_group
    offsets = []
    at = len(table) // 4
    for start, stop in planes:
        offsets.append(at)
        at += -(-padded * (stop - start) // 16) * 4
    return Layout(tuple(planes), n_blocks, tuple(offsets), at, table)
