"""The 4-bit formats whose quants are places in a table instead of numbers on a line: IQ4_NL, IQ4_XS, MXFP4.

Layouts are those of ggml's ``block_iq4_nl``, ``block_iq4_xs`` and ``block_mxfp4``, here as name and bytes of each
part in order. ``d`` is float16. A byte of quants has number i of its group of 32 in the low half, number i + 16
in the high half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wgllm.quant.base import F32, U8
from wgllm.quant.chunked import ChunkedFormat, join, minus, stretches, take_bytes, take_halves, unpack

Pairs = NDArray[np.complex64]


def _pairs(levels: tuple[int, ...]) -> Pairs:
    """The levels of two neighbouring quants by the 16-bit word that their bytes make.

    A look-up costs the same for one number or two; complex64 is NumPy's element of two float32.
    """
    table = np.zeros((16, 256, 2), np.float32)
    table[:, :16, 0] = levels
    table[:, :16, 1] = np.array(levels)[:, None]
    return table.view(np.complex64).reshape(-1)


# ggml's kvalues_iq4nl: denser around 0, where weights are many.
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the numbers of E2M1: a sign, two bits of exponent, one of mantissa (OCP's Microscaling Formats 1.0). Of the two
# zeros none is negative in ggml.
E2M1_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

_IQ4_PAIRS = _pairs(IQ4_LEVELS)
_E2M1_PAIRS = _pairs(E2M1_LEVELS)


def _half_powers() -> F32:
    """Half the numbers of E8M0, 2^(e - 128), as ggml has them: all finite, e = 255 too."""
    exponents = np.arange(256, dtype=np.uint32)
    bits = (exponents - np.uint32(1)) << np.uint32(23)
    bits[:2] = 0x00200000, 0x00400000  # subnormal
    return bits.view(np.float32)


_HALF_POWERS = _half_powers()


class IQ4_NL(ChunkedFormat):
    """``d`` 2 | quants 16. x = d IQ4_LEVELS[q]."""

    name = "IQ4_NL"
    type_id = 20
    block_size = 32
    type_size = 18
    planes = ((2, 18), (0, 2))

    def _decode(self, blocks: U8, out: F32) -> None:
        _look_up(out, _IQ4_PAIRS, take_bytes(blocks, 2, 18), take_halves(blocks, 0))


class IQ4_XS(ChunkedFormat):
    """``d`` 2 | high scale bits 2 | low scale bits 4 | quants 128. x = d (s - 32) IQ4_LEVELS[q], groups of 32."""

    name = "IQ4_XS"
    type_id = 23
    block_size = 256
    type_size = 136
    planes = ((8, 136), (0, 8))

    def _decode(self, blocks: U8, out: F32) -> None:
        scales = unpack(take_bytes(blocks, 4, 8), 4, 1)
        scales = join(scales, unpack(take_bytes(blocks, 2, 4), 2, 1), 16)
        _look_up(out, _IQ4_PAIRS, take_bytes(blocks, 8, 136), minus(scales, 32) * take_halves(blocks, 0))


class MXFP4(ChunkedFormat):
    """``e`` 1 | quants 16. x = 2^(e - 128) E2M1_LEVELS[q]."""

    name = "MXFP4"
    type_id = 39
    block_size = 32
    type_size = 17
    planes = ((1, 17), (0, 1))
    power_scales = True

    def _decode(self, blocks: U8, out: F32) -> None:
        _look_up(out, _E2M1_PAIRS, take_bytes(blocks, 1, 17), _HALF_POWERS[blocks[:, 0]])


def _look_up(out: F32, levels: Pairs, packed: U8, d: F32) -> None:
    """``out = levels[quants] * d``, where each ``d`` is for 16 bytes of ``packed``, which hold 32 quants."""
    words = unpack(packed, 4, 16).view(np.uint16).reshape(-1, 16)
    groups = out.reshape(-1, 32)
    d = d.reshape(-1, 1)
    for part in stretches(groups):
        numbers = groups[part]
        np.take(levels, words[part], out=numbers.view(np.complex64), mode="clip")
        numbers *= d[part]
