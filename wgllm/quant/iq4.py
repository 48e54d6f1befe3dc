"""The 4-bit formats whose quants are places in a table instead of numbers on a line: IQ4_NL and IQ4_XS.

Layouts are those of ggml's ``block_iq4_nl`` and ``block_iq4_xs``, here as name and bytes of each part in
order. ``d`` is float16. A byte of quants has number i of its group of 32 in the low half, number i + 16 in
the high half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wgllm.quant.base import F32, U8
from wgllm.quant.chunked import ChunkedFormat, join, minus, stretches, take_bytes, take_halves, unpack

# ggml's kvalues_iq4nl: denser around 0, where weights are many.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


class IQ4_NL(ChunkedFormat):
    """``d`` 2 | quants 16. x = d LEVELS[q]."""

    name = "IQ4_NL"
    type_id = 20
    block_size = 32
    type_size = 18
    planes = ((2, 18), (0, 2))

    def _decode(self, blocks: U8, out: F32) -> None:
        _look_up(out, take_bytes(blocks, 2, 18), take_halves(blocks, 0))


class IQ4_XS(ChunkedFormat):
    """``d`` 2 | high scale bits 2 | low scale bits 4 | quants 128. x = d (s - 32) LEVELS[q], groups of 32."""

    name = "IQ4_XS"
    type_id = 23
    block_size = 256
    type_size = 136
    planes = ((8, 136), (0, 8))

    def _decode(self, blocks: U8, out: F32) -> None:
        scales = unpack(take_bytes(blocks, 4, 8), 4, 1)
        scales = join(scales, unpack(take_bytes(blocks, 2, 4), 2, 1), 16)
        _look_up(out, take_bytes(blocks, 8, 136), minus(scales, 32) * take_halves(blocks, 0))


def _pairs() -> NDArray[np.complex64]:
    """The levels of two neighbouring quants by the 16-bit word that their bytes make."""
    first, second = np.meshgrid(LEVELS, LEVELS)
    table = np.zeros((16, 256), np.complex64)
    table[:, :16] = first + 1j * second
    return table.reshape(-1)


# A look-up costs the same for one number or two; complex64 is NumPy's element of two float32.
_PAIRS = _pairs()


def _look_up(out: F32, packed: U8, d: F32) -> None:
    """``out = LEVELS[quants] * d``, where each ``d`` is for 16 bytes of ``packed``, which hold 32 quants."""
    words = unpack(packed, 4, 16).view(np.uint16).reshape(-1, 16)
    groups = out.reshape(-1, 32)
    d = d.reshape(-1, 1)
    for part in stretches(groups):
        numbers = groups[part]
        np.take(_PAIRS, words[part], out=numbers.view(np.complex64), mode="clip")
        numbers *= d[part]
