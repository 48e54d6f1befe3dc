"""The K-quants: 256 numbers in groups of 16 or 32, whose scales are quantized themselves.

Layouts are those of ggml's ``block_q*_K`` structures, here as name and bytes of each part in order. ``d`` and
``dmin`` are float16. Quants of b bits lie in runs of 32 bytes (64 in Q6_K's low part): the lowest b bits of a
run's bytes are its first numbers, then come the next higher b bits, and so on.
"""

from __future__ import annotations

import numpy as np

from wgllm.quant.base import F32, U8
from wgllm.quant.chunked import ChunkedFormat, join, minus, scale, take_bytes, take_halves, unpack


class Q2_K(ChunkedFormat):
    """Scales 16 | quants 64 | ``d`` 2 | ``dmin`` 2. x = d s q - dmin t, groups of 16.

    A scale byte holds s in its low and t in its high half.
    """

    name = "Q2_K"
    type_id = 10
    block_size = 256
    type_size = 84
    planes = ((16, 80), (0, 16), (80, 84))

    def _decode(self, blocks: U8, out: F32) -> None:
        scales = take_bytes(blocks, 0, 16)
        d = take_halves(blocks, 80, 2)
        quants = unpack(take_bytes(blocks, 16, 80), 2, 32)
        scale(out, quants, (scales & np.uint8(15)) * d[:, :1], (scales >> np.uint8(4)) * -d[:, 1:])


class Q3_K(ChunkedFormat):
    """Third bits 32 | low quants 64 | scales 12 | ``d`` 2. x = d (s - 32) (q - 4), groups of 16.

    Of the 6-bit scales s, the first 8 bytes hold the low four bits and the last 4 bytes the high two.
    """

    name = "Q3_K"
    type_id = 11
    block_size = 256
    type_size = 110
    planes = ((32, 96), (0, 32), (96, 108), (108, 110))

    def _decode(self, blocks: U8, out: F32) -> None:
        scales = join(
            unpack(take_bytes(blocks, 96, 104), 4, 8), unpack(take_bytes(blocks, 104, 108), 2, 4), 16
        )
        quants = join(unpack(take_bytes(blocks, 32, 96), 2, 32), unpack(take_bytes(blocks, 0, 32), 1, 32), 4)
        scale(out, minus(quants, 4), minus(scales, 32) * take_halves(blocks, 108))


class Q4_K(ChunkedFormat):
    """``d`` 2 | ``dmin`` 2 | scales 12 | quants 128. x = d s q - dmin t, groups of 32."""

    name = "Q4_K"
    type_id = 12
    block_size = 256
    type_size = 144
    planes = ((0, 144),)

    def _decode(self, blocks: U8, out: F32) -> None:
        d, offset = _scales_and_offsets(blocks)
        scale(out, unpack(take_bytes(blocks, 16, 144), 4, 32), d, offset)


class Q5_K(ChunkedFormat):
    """``d`` 2 | ``dmin`` 2 | scales 12 | fifth bits 32 | low quants 128. x = d s q - dmin t, groups of 32."""

    name = "Q5_K"
    type_id = 13
    block_size = 256
    type_size = 176
    planes = ((0, 176),)

    def _decode(self, blocks: U8, out: F32) -> None:
        d, offset = _scales_and_offsets(blocks)
        quants = join(
            unpack(take_bytes(blocks, 48, 176), 4, 32), unpack(take_bytes(blocks, 16, 48), 1, 32), 16
        )
        scale(out, quants, d, offset)


class Q6_K(ChunkedFormat):
    """Low quants 128 | high two bits 64 | signed scales 16 | ``d`` 2. x = d s (q - 32), groups of 16."""

    name = "Q6_K"
    type_id = 14
    block_size = 256
    type_size = 210
    planes = ((0, 128), (128, 192), (192, 208), (208, 210))

    def _decode(self, blocks: U8, out: F32) -> None:
        scales = take_bytes(blocks, 192, 208).view(np.int8)
        quants = join(
            unpack(take_bytes(blocks, 0, 128), 4, 64), unpack(take_bytes(blocks, 128, 192), 2, 32), 16
        )
        scale(out, minus(quants, 32), scales * take_halves(blocks, 208))


def _scales_and_offsets(blocks: U8) -> tuple[F32, F32]:
    """d s and -dmin t of Q4_K and Q5_K, [n, 8] each.

    Of the 12 bytes, 0-3 hold s of groups 0-3 in their low six bits, 4-7 likewise t. Bytes 8-11 hold the low
    four bits of s (low half) and t (high half) of groups 4-7; the high two bits are on top of bytes 0-7.
    """
    first = take_bytes(blocks, 4, 12)
    second = join(unpack(take_bytes(blocks, 12, 16), 4, 4), first >> np.uint8(6), 16)
    first &= np.uint8(63)
    words = np.empty((2, len(blocks), 2), np.uint32)  # [s or t, n, groups 0-3 or 4-7]: four groups to a word
    words[:, :, 0] = first.view(np.uint32).T
    words[:, :, 1] = second.view(np.uint32).T
    scales, minima = words.view(np.uint8)  # [n, 8] each
    d = take_halves(blocks, 0, 2)
    return scales * d[:, :1], minima * -d[:, 1:]
