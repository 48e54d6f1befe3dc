"""Blocks for checks, of any format: random bytes with scales of reasonable size where nothing quantizes to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wgllm.quant.base import U8, QuantFormat

# Where the float16 numbers of a block begin. All other bytes may be any.
_HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ1_S": (0,),
    "IQ1_M": (48,),  # there, but in four parts
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def random_blocks(fmt: QuantFormat, size: NDArray[np.float64], random: np.random.Generator) -> U8:
    """Blocks [n, type_size] whose scales (in formats that can be quantized to, numbers) are about ``size`` [n]."""
    n = len(size)
    if fmt.name not in _HALVES and not fmt.power_scales:
        values = random.standard_normal((n, fmt.block_size)) * size[:, None]
        return fmt.quantize_blocks(values.astype(np.float32))
    blocks = random.integers(0, 256, (n, fmt.type_size), dtype=np.uint8)
    if fmt.power_scales:
        blocks[:, 0] = 127 + np.rint(np.log2(size))
    for start in _HALVES.get(fmt.name, ()):
        halves = (random.standard_normal(n) * size).astype(np.float16)
        if fmt.name == "IQ1_M":
            set_split_halves(blocks, halves)
        else:
            blocks[:, start : start + 2] = halves[:, None].view(np.uint8)
    return blocks


def set_split_halves(blocks: U8, halves: NDArray[np.float16]) -> None:
    """Makes ``halves`` [n] the d of IQ1_M's blocks, whose four bits each are the highest of four 16 bits."""
    bits = blocks[:, 48:56].copy().view(np.uint16)
    fourths = halves.view(np.uint16)[:, None] << np.array([12, 8, 4, 0], np.uint16)
    bits = (bits & np.uint16(0x0FFF)) | (fourths & np.uint16(0xF000))
    blocks[:, 48:56] = bits.view(np.uint8)
