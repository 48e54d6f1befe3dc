"""The formats of the numbers -1, 0 and 1: TQ1_0 and TQ2_0.

Layouts are those of ggml's ``block_tq1_0`` and ``block_tq2_0``, here as name and bytes of each part in order. ``d`` is
float16, for 256 numbers. x = d (q - 1).
"""

from __future__ import annotations

import numpy as np

from wgllm.quant.base import F32, U8
from wgllm.quant.chunked import ChunkedFormat, minus, scale, take_bytes, take_halves, unpack


class TQ1_0(ChunkedFormat):
    """Five quants each 48 | four quants each 4 | ``d`` 2.

    A byte is a fraction of 256 whose digits to the base 3 are quants. The first digits of the first 32 bytes are
    numbers 0-31, their second ones 32-63 …; then come the digits of the next 16 bytes, then those of the last 4.
    """

    name = "TQ1_0"
    type_id = 34
    block_size = 256
    type_size = 54
    planes = ((0, 48), (48, 52), (52, 54))

    def _decode(self, blocks: U8, out: F32) -> None:
        fractions = np.empty((len(blocks), 256), np.uint8)
        at = 0
        for start, stop, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
            part = take_bytes(blocks, start, stop)
            for _ in range(digits):
                fractions[:, at : at + stop - start] = part
                part *= np.uint8(3)  # what is left of the fraction behind its first digit
                at += stop - start
        # The first digit is the whole part of 3 f / 256.
        quants = (fractions > np.uint8(85)).view(np.uint8)
        quants += (fractions > np.uint8(170)).view(np.uint8)
        scale(out, minus(quants, 1), take_halves(blocks, 52))


class TQ2_0(ChunkedFormat):
    """Quants 64 | ``d`` 2. Quants lie as in Q2_K; 3 stands for 2."""

    name = "TQ2_0"
    type_id = 35
    block_size = 256
    type_size = 66
    planes = ((0, 64), (64, 66))

    def _decode(self, blocks: U8, out: F32) -> None:
        scale(out, minus(unpack(take_bytes(blocks, 0, 64), 2, 32), 1), take_halves(blocks, 64))
