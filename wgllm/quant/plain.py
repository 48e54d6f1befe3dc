"""Numbers that stand alone: blocks of one."""

from __future__ import annotations

import numpy as np

from wgllm.quant.base import F32, U8, QuantFormat
from wgllm.quant.chunked import ChunkedFormat, stretches, widen_halves


class F32Format(QuantFormat):
    """IEEE binary32, little-endian."""

    name = "F32"
    type_id = 0
    block_size = 1
    type_size = 4
    planes = ((0, 4),)

    def dequantize_blocks(self, blocks: U8, out: F32) -> None:
        np.copyto(out, blocks.view(np.float32))

    def quantize_blocks(self, values: F32) -> U8:
        return np.array(values, np.float32, order="C").view(np.uint8)


class F16Format(ChunkedFormat):
    """IEEE binary16, little-endian. Numbers beyond 65504 become infinite when written."""

    name = "F16"
    type_id = 1
    block_size = 1
    type_size = 2
    planes = ((0, 2),)

    def _decode(self, blocks: U8, out: F32) -> None:
        halves = blocks.view(np.uint16)
        for part in stretches(out):
            widen_halves(halves[part], out[part])

    def quantize_blocks(self, values: F32) -> U8:
        with np.errstate(all="ignore"):
            return values.astype(np.float16, order="C").view(np.uint8)


class BF16Format(ChunkedFormat):
    """The upper half of a binary32, little-endian. Quantizing rounds to nearest, ties to even."""

    name = "BF16"
    type_id = 30
    block_size = 1
    type_size = 2
    planes = ((0, 2),)

    def _decode(self, blocks: U8, out: F32) -> None:
        upper, bits = blocks.view(np.uint16), out.view(np.uint32)
        for part in stretches(out):
            np.copyto(bits[part], upper[part])
            bits[part] <<= np.uint32(16)

    def quantize_blocks(self, values: F32) -> U8:
        bits = np.array(values, np.float32, order="C").view(np.uint32)
        upper = bits >> np.uint32(16)
        # Half of the last place that stays, less one where that place is even: a tie then does not carry.
        rounded = (bits + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)
        quiet_nan = upper | np.uint32(0x40)
        return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16).view(np.uint8)
