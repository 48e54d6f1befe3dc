"""The formats with one scale for 32 numbers: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Layouts are those of ggml's ``block_q*`` structures, here as name and bytes of each part in order. ``d``, the
scale, and ``m``, the minimum, are float16. A byte of two quants has number i in the low half, number i + 16
in the high half.

Quantizing follows ggml's reference. A block with a NaN or an infinity gets a scale or a minimum that is not
finite, so that the trouble is still seen when the block is read back; its quants mean nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wgllm.quant.base import F32, U8
from wgllm.quant.chunked import ChunkedFormat, join, minus, scale, take_bytes, take_halves, unpack


class Q4_0(ChunkedFormat):
    """``d`` 2 | quants 16. x = d (q - 8)."""

    name = "Q4_0"
    type_id = 2
    block_size = 32
    type_size = 18
    planes = ((2, 18), (0, 2))

    def _decode(self, blocks: U8, out: F32) -> None:
        quants = unpack(take_bytes(blocks, 2, 18), 4, 16)
        scale(out, minus(quants, 8), take_halves(blocks, 0))

    def quantize_blocks(self, values: F32) -> U8:
        d, quants = _quantize_symmetric(values, 8)
        return np.hstack([_half_bytes(d), _pack_nibbles(quants)])


class Q4_1(ChunkedFormat):
    """``d`` 2 | ``m`` 2 | quants 16. x = d q + m."""

    name = "Q4_1"
    type_id = 3
    block_size = 32
    type_size = 20
    planes = ((4, 20), (0, 4))

    def _decode(self, blocks: U8, out: F32) -> None:
        dm = take_halves(blocks, 0, 2)
        scale(out, unpack(take_bytes(blocks, 4, 20), 4, 16), dm[:, 0], dm[:, 1])

    def quantize_blocks(self, values: F32) -> U8:
        d, m, quants = _quantize_affine(values, 15)
        return np.hstack([_half_bytes(d), _half_bytes(m), _pack_nibbles(quants)])


class Q5_0(ChunkedFormat):
    """``d`` 2 | fifth bits 4 (number i's is bit i) | low quants 16. x = d (q - 16)."""

    name = "Q5_0"
    type_id = 6
    block_size = 32
    type_size = 22
    planes = ((6, 22), (2, 6), (0, 2))

    def _decode(self, blocks: U8, out: F32) -> None:
        scale(out, minus(_five_bits(blocks, 2), 16), take_halves(blocks, 0))

    def quantize_blocks(self, values: F32) -> U8:
        d, quants = _quantize_symmetric(values, 16)
        return np.hstack([_half_bytes(d), _pack_fifth_bits(quants), _pack_nibbles(quants)])


class Q5_1(ChunkedFormat):
    """``d`` 2 | ``m`` 2 | fifth bits 4 (number i's is bit i) | low quants 16. x = d q + m."""

    name = "Q5_1"
    type_id = 7
    block_size = 32
    type_size = 24
    planes = ((8, 24), (4, 8), (0, 4))

    def _decode(self, blocks: U8, out: F32) -> None:
        dm = take_halves(blocks, 0, 2)
        scale(out, _five_bits(blocks, 4), dm[:, 0], dm[:, 1])

    def quantize_blocks(self, values: F32) -> U8:
        d, m, quants = _quantize_affine(values, 31)
        return np.hstack([_half_bytes(d), _half_bytes(m), _pack_fifth_bits(quants), _pack_nibbles(quants)])


class Q8_0(ChunkedFormat):
    """``d`` 2 | signed quants 32. x = d q."""

    name = "Q8_0"
    type_id = 8
    block_size = 32
    type_size = 34
    planes = ((2, 34), (0, 2))

    def _decode(self, blocks: U8, out: F32) -> None:
        scale(out, take_bytes(blocks, 2, 34).view(np.int8), take_halves(blocks, 0))

    def quantize_blocks(self, values: F32) -> U8:
        with np.errstate(all="ignore"):
            d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
            scaled = values * _inverse(d)
            # Halves go away from zero. What trunc leaves is exact, so that 0.49999997 goes to 0, which
            # floor(x + 0.5) would make 1.
            whole = np.trunc(scaled)
            whole += np.trunc(2 * (scaled - whole))
            return np.hstack([_half_bytes(d), whole.astype(np.int8).view(np.uint8)])


def _five_bits(blocks: U8, start: int) -> U8:
    """Quants 0..31 of blocks that hold 4 bytes of fifth bits and 16 of low quants from ``start``."""
    quants = unpack(take_bytes(blocks, start + 4, start + 20), 4, 16)
    # Flat, since along an axis NumPy unpacks one row at a time.
    fifth = np.unpackbits(take_bytes(blocks, start, start + 4).reshape(-1), bitorder="little")
    return join(quants, fifth.reshape(quants.shape), 16)


def _quantize_symmetric(values: F32, zero: int) -> tuple[F32, U8]:
    """Scales [n, 1] and quants [n, 32] with x = d (q - zero). The number farthest from 0 gets q = 0."""
    with np.errstate(all="ignore"):
        farthest = np.abs(values).argmax(axis=1)[:, None]
        d = np.take_along_axis(values, farthest, axis=1) / np.float32(-zero)
        quants = (values * _inverse(d) + np.float32(zero + 0.5)).astype(np.uint8)
    # A number as far from 0 on the other side rounds to 2 * zero, for which there is no quant.
    return d, np.minimum(quants, np.uint8(2 * zero - 1))


def _quantize_affine(values: F32, top: int) -> tuple[F32, F32, U8]:
    """Scales and minima [n, 1] and quants 0..top [n, 32] with x = d q + m."""
    with np.errstate(all="ignore"):
        m = values.min(axis=1, keepdims=True)
        d = (values.max(axis=1, keepdims=True) - m) / np.float32(top)
        quants = ((values - m) * _inverse(d) + np.float32(0.5)).astype(np.uint8)
    return d, m, np.minimum(quants, np.uint8(top))


def _inverse(d: F32) -> F32:
    inverse: F32 = np.where(d == 0, np.float32(0), 1 / d)
    return inverse


def _half_bytes(numbers: F32) -> U8:
    with np.errstate(all="ignore"):
        halves: NDArray[np.float16] = numbers.astype(np.float16)
    return halves.view(np.uint8)


def _pack_nibbles(quants: U8) -> U8:
    return (quants[:, :16] & np.uint8(15)) | (quants[:, 16:] << np.uint8(4))


def _pack_fifth_bits(quants: U8) -> U8:
    return np.packbits(quants >> np.uint8(4), axis=1, bitorder="little")
