"""Decoding in pieces that stay in the cache, and the few steps that all block formats are made of."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wgllm.quant.base import F32, U8, QuantFormat

I8 = NDArray[np.int8]

# Two sizes, both in numbers. Bytes are unpacked for a whole chunk; the passes over the float32 output, four
# times as wide, cover a shorter stretch at a time, so that the second-level cache holds it. Smaller chunks
# cost threads dearly: each NumPy call releases the interpreter's lock and has to get it back.
CHUNK = 1 << 20
STRETCH = 1 << 17


class ChunkedFormat(QuantFormat):
    """A format whose decoder works on ``CHUNK`` numbers at a time."""

    def dequantize_blocks(self, blocks: U8, out: F32) -> None:
        step = CHUNK // self.block_size
        # A hostile file may hold infinite scales: inf * 0 and inf - inf are NaN, as in ggml, not an error.
        with np.errstate(all="ignore"):
            for start in range(0, len(blocks), step):
                self._decode(blocks[start : start + step], out[start : start + step])

    @abc.abstractmethod
    def _decode(self, blocks: U8, out: F32) -> None:
        """``dequantize_blocks`` for at least one block and at most ``CHUNK`` numbers."""


def take_bytes(blocks: U8, start: int, stop: int) -> U8:
    """Bytes ``start:stop`` of every block as a contiguous [n, stop - start]."""
    # As one wide element per block: NumPy copies those several times as fast as rows of a few bytes.
    return blocks[:, start:stop].view(f"V{stop - start}").copy().view(np.uint8)


def take_halves(blocks: U8, start: int, count: int = 1) -> F32:
    """``count`` float16 numbers from byte ``start`` of every block, as float32 [n, count]."""
    halves = take_bytes(blocks, start, start + 2 * count).view(np.uint16)
    out = np.empty(halves.shape, np.float32)
    widen_halves(halves, out)
    return out


def widen_halves(halves: NDArray[np.uint16], out: F32) -> None:
    """float16 bits to float32, exactly. Several times as fast as NumPy's own conversion."""
    bits = out.view(np.int32)
    # Sign-extended, so that after the shift the sign is in its place, with copies of it below to mask away.
    np.copyto(bits, halves.view(np.int16))
    bits <<= 13
    bits &= ~0x70001FFF
    out *= np.float32(2.0**112)  # the difference of the exponents' biases; right for subnormals too
    exponent = halves & np.uint16(0x7C00)
    if exponent.max() == 0x7C00:
        special = exponent == 0x7C00  # infinities and NaNs, which the multiplication made 65536 and above
        out[special] = halves[special].view(np.float16)


def unpack(packed: U8, bits: int, run: int) -> U8:
    """The ``bits``-wide fields of ``packed`` [n, size] as bytes [n, size * 8 / bits].

    In each run of ``run`` bytes the lowest fields of all bytes come first, then the next higher ones.
    """
    parts = 8 // bits
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed.reshape(1, -1) >> shifts  # [parts, n * size]
    fields &= np.uint8((1 << bits) - 1)
    out = np.empty((packed.size // run, parts), f"V{run}")
    for i in range(parts):
        out[:, i] = fields[i].view(out.dtype)
    return out.view(np.uint8).reshape(len(packed), -1)


def join(low: U8, high: U8, weight: int) -> U8:
    """``low + weight * high`` where ``low < weight``. Overwrites both."""
    high *= np.uint8(weight)  # NumPy multiplies bytes many at a time but shifts them left one by one
    low |= high
    return low


def minus(quants: U8, zero: int) -> I8:
    """``quants - zero``. Overwrites ``quants``."""
    signed = quants.view(np.int8)
    signed -= np.int8(zero)
    return signed


def scale(out: F32, quants: U8 | I8, d: F32, offset: F32 | None = None) -> None:
    """``out = quants * d + offset``, where each of the ``d`` and ``offset`` is for one group of numbers."""
    groups = out.reshape(d.size, -1)
    quants = quants.reshape(groups.shape)
    d = d.reshape(-1, 1)
    offset = None if offset is None else offset.reshape(-1, 1)
    for part in stretches(groups):
        numbers = groups[part]
        # A pass of its own: multiplying mixed types would go through NumPy's buffers, which is slower.
        np.copyto(numbers, quants[part])
        numbers *= d[part]
        if offset is not None:
            numbers += offset[part]


def stretches(groups: F32) -> Iterator[slice]:
    """Slices of the first axis of ``groups`` that hold ``STRETCH`` numbers each."""
    step = STRETCH // groups.shape[1]
    return (slice(start, start + step) for start in range(0, len(groups), step))
