"""The formats whose quants are indices of a grid (``grids.py``): IQ1_S, IQ1_M, IQ2_XXS … IQ2_S, IQ3_XXS, IQ3_S.

Layouts are those of ggml's ``block_iq1_*``, ``block_iq2_*`` and ``block_iq3_*``, here as name and bytes of each part in
order. All have 256 numbers in groups of 32, and ``d`` is float16. An index stands for 8 numbers (4 in the IQ3 formats).
Grids of the IQ2 and IQ3 formats hold magnitudes; each number has a sign besides, set where it is negative. Where signs
of 8 numbers take 7 bits, the eighth is such that an even number is negative.
"""

from __future__ import annotations

import abc
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wgllm.quant.base import F32, U8
from wgllm.quant.chunked import I8, ChunkedFormat, scale, take_bytes, take_halves, unpack, widen_halves
from wgllm.quant.grids import Grid

Indices = NDArray[np.uint16]

_IQ2_LEVELS = (8, 25, 43)


class GridFormat(ChunkedFormat):
    """Quants are entries of ``grid``, which shaders look up in the format's table."""

    block_size = 256
    grid: Grid

    @property
    def table(self) -> bytes:
        return self.grid.table


class _SignedGridFormat(GridFormat):
    """x = d' times a number of the grid with its sign."""

    def _decode(self, blocks: U8, out: F32) -> None:
        quants = _look_up(self.grid.elements, self._indices(blocks))
        minus = self._minus(blocks)
        quants ^= minus
        quants -= minus
        scale(out, quants, self._scales(blocks))

    @abc.abstractmethod
    def _indices(self, blocks: U8) -> U8 | Indices:
        """Which entries of the grid, [n, 256 / width]."""

    @abc.abstractmethod
    def _minus(self, blocks: U8) -> I8:
        """-1 for each number that is negative, 0 for the others, [n, 256]."""

    @abc.abstractmethod
    def _scales(self, blocks: U8) -> F32:
        """d' of each group of 16 or 32 numbers, [n, groups]."""


class IQ2_XXS(_SignedGridFormat):
    """``d`` 2 | of each group 4 indices 4, signs and scale 4. d' = d (s + 1/2) / 4, groups of 32.

    Of the last word, s is the highest four bits. Below it, from the lowest, are four times 7 bits of signs.
    """

    name = "IQ2_XXS"
    type_id = 16
    type_size = 66
    planes = ((2, 66), (0, 2))
    grid = Grid("iq2_xxs", _IQ2_LEVELS)

    def _indices(self, blocks: U8) -> U8:
        return _words(blocks, 2, 66)[:, 0::2].copy().view(np.uint8)

    def _minus(self, blocks: U8) -> I8:
        return _minus_by_words(_words(blocks, 2, 66)[:, 1::2])

    def _scales(self, blocks: U8) -> F32:
        return _scales_of_words(_words(blocks, 2, 66)[:, 1::2]) * (take_halves(blocks, 0) / np.float32(4))


class IQ2_XS(_SignedGridFormat):
    """``d`` 2 | 32 times 9 bits of index below 7 of signs, 64 | scales 8. d' = d (s + 1/2) / 4, groups of 16."""

    name = "IQ2_XS"
    type_id = 17
    type_size = 74
    planes = ((2, 66), (66, 74), (0, 2))
    grid = Grid("iq2_xs", _IQ2_LEVELS)

    def _indices(self, blocks: U8) -> Indices:
        return take_bytes(blocks, 2, 66).view(np.uint16) & np.uint16(511)

    def _minus(self, blocks: U8) -> I8:
        return _look_up(_SEVEN_SIGNS, take_bytes(blocks, 2, 66).view(np.uint16) >> np.uint16(9))

    def _scales(self, blocks: U8) -> F32:
        scales = unpack(take_bytes(blocks, 66, 74), 4, 1)
        return (scales + np.float32(0.5)) * (take_halves(blocks, 0) / np.float32(4))


class IQ2_S(_SignedGridFormat):
    """``d`` 2 | low 8 bits of indices 32 | signs 32 | high 2 bits of indices 8 | scales 8.

    d' = d (s + 1/2) / 4, groups of 16.
    """

    name = "IQ2_S"
    type_id = 22
    type_size = 82
    planes = ((2, 66), (66, 82), (0, 2))
    grid = Grid("iq2_s", _IQ2_LEVELS)

    def _indices(self, blocks: U8) -> Indices:
        return _join(take_bytes(blocks, 2, 34), unpack(take_bytes(blocks, 66, 74), 2, 1))

    def _minus(self, blocks: U8) -> I8:
        return _look_up(_EIGHT_SIGNS, take_bytes(blocks, 34, 66))

    def _scales(self, blocks: U8) -> F32:
        scales = unpack(take_bytes(blocks, 74, 82), 4, 1)
        return (scales + np.float32(0.5)) * (take_halves(blocks, 0) / np.float32(4))


class IQ3_XXS(_SignedGridFormat):
    """``d`` 2 | indices 64 | of each group signs and scale 4, as in IQ2_XXS. d' = d (s + 1/2) / 2, groups of 32."""

    name = "IQ3_XXS"
    type_id = 18
    type_size = 98
    planes = ((2, 98), (0, 2))
    grid = Grid("iq3_xxs", (4, 12, 20, 28, 36, 44, 52, 62), width=4)

    def _indices(self, blocks: U8) -> U8:
        return take_bytes(blocks, 2, 66)

    def _minus(self, blocks: U8) -> I8:
        return _minus_by_words(_words(blocks, 66, 98))

    def _scales(self, blocks: U8) -> F32:
        return _scales_of_words(_words(blocks, 66, 98)) * (take_halves(blocks, 0) / np.float32(2))


class IQ3_S(_SignedGridFormat):
    """``d`` 2 | low 8 bits of indices 64 | ninth bits 8 | signs 32 | scales 4. d' = d (2 s + 1), groups of 32."""

    name = "IQ3_S"
    type_id = 21
    type_size = 110
    planes = ((2, 110), (0, 2))
    grid = Grid("iq3_s", (1, 3, 5, 7, 9, 11, 13, 15), width=4)

    def _indices(self, blocks: U8) -> Indices:
        return _join(take_bytes(blocks, 2, 66), unpack(take_bytes(blocks, 66, 74), 1, 1))

    def _minus(self, blocks: U8) -> I8:
        return _look_up(_EIGHT_SIGNS, take_bytes(blocks, 74, 106))

    def _scales(self, blocks: U8) -> F32:
        return _odd(unpack(take_bytes(blocks, 106, 110), 4, 1)) * take_halves(blocks, 0)


class _ShiftedGridFormat(GridFormat):
    """x = d (2 s + 1) (n ± 1/8), where n is a number of the grid, and the 8 numbers of an index share the sign."""

    grid = Grid("iq1", (-1, 0, 1))

    def _decode(self, blocks: U8, out: F32) -> None:
        quants = _look_up(_eighths(self.grid), _join(self._low(blocks), self._high(blocks)))
        scale(out, quants, self._scales(blocks))

    @abc.abstractmethod
    def _low(self, blocks: U8) -> U8:
        """The low 8 bits of indices, [n, 32]."""

    @abc.abstractmethod
    def _high(self, blocks: U8) -> U8:
        """Their high three bits, and above these 1 where 1/8 is taken away, [n, 32]."""

    @abc.abstractmethod
    def _scales(self, blocks: U8) -> F32:
        """d (2 s + 1) / 8 of each group of 16 or 32 numbers, [n, groups]."""


class IQ1_S(_ShiftedGridFormat):
    """``d`` 2 | low 8 bits of indices 32 | of each group 16 bits, 16. Groups of 32.

    The 16 bits, from the lowest: four times three high bits of an index, three of s, the sign of 1/8.
    """

    name = "IQ1_S"
    type_id = 19
    type_size = 50
    planes = ((2, 50), (0, 2))

    def _low(self, blocks: U8) -> U8:
        return take_bytes(blocks, 2, 34)

    def _high(self, blocks: U8) -> U8:
        bits = take_bytes(blocks, 34, 50).view(np.uint16)
        high = np.empty((len(blocks), 8, 4), np.uint8)
        sign = (bits >> np.uint16(12)) & np.uint16(8)
        for i in range(4):
            high[:, :, i] = ((bits >> np.uint16(3 * i)) & np.uint16(7)) | sign
        return high.reshape(len(blocks), 32)

    def _scales(self, blocks: U8) -> F32:
        s = (take_bytes(blocks, 34, 50).view(np.uint16) >> np.uint16(12)) & np.uint16(7)
        return _odd(s) * (take_halves(blocks, 0) / np.float32(8))


class IQ1_M(_ShiftedGridFormat):
    """Low 8 bits of indices 32 | high halves 16 | four times 16 bits of scales 8. Groups of 16.

    A high half (four bits) has three bits of an index, below the sign of its 1/8. Of the 16 bits the lowest twelve are
    s of four groups, and the highest four belong to ``d``, whose lowest bits come first.
    """

    name = "IQ1_M"
    type_id = 29
    type_size = 56
    planes = ((0, 56),)

    def _low(self, blocks: U8) -> U8:
        return take_bytes(blocks, 0, 32)

    def _high(self, blocks: U8) -> U8:
        return unpack(take_bytes(blocks, 32, 48), 4, 1)

    def _scales(self, blocks: U8) -> F32:
        bits = take_bytes(blocks, 48, 56).view(np.uint16)  # [n, 4]
        fourths = (bits & np.uint16(0xF000)) >> np.array([12, 8, 4, 0], np.uint16)
        d = np.empty((len(blocks), 1), np.float32)
        widen_halves(np.bitwise_or.reduce(fourths, axis=1, keepdims=True), d)
        s = (bits[:, :, None] >> np.array([0, 3, 6, 9], np.uint16)) & np.uint16(7)
        return _odd(s.reshape(len(blocks), 16)) * (d / np.float32(8))


def _words(blocks: U8, start: int, stop: int) -> NDArray[np.uint32]:
    return take_bytes(blocks, start, stop).view(np.uint32)


def _join(low: U8, high: U8) -> Indices:
    """``low + 256 high``."""
    both = np.empty((*low.shape, 2), np.uint8)
    both[..., 0] = low
    both[..., 1] = high
    return both.view(np.uint16).reshape(low.shape)


def _odd(s: NDArray[Any]) -> F32:
    """2 s + 1."""
    odd = s.astype(np.float32)
    odd *= np.float32(2)
    odd += np.float32(1)
    return odd


def _scales_of_words(words: NDArray[np.uint32]) -> F32:
    """s + 1/2, where s is the highest four bits."""
    return (words >> np.uint32(28)).astype(np.float32) + np.float32(0.5)


def _minus_by_words(words: NDArray[np.uint32]) -> I8:
    """-1 or 0 by four times 7 bits of signs in each of ``words`` [n, 8]."""
    signs = np.empty((*words.shape, 4), np.uint8)
    for i in range(4):
        signs[..., i] = (words >> np.uint32(7 * i)) & np.uint32(127)
    return _look_up(_SEVEN_SIGNS, signs.reshape(len(words), 32))


@functools.cache
def _eighths(grid: Grid) -> NDArray[np.void]:
    """8 n + 1 for the numbers n of each entry, then 8 n - 1 for those of each."""
    both = np.stack([8 * grid.entries + np.int8(1), 8 * grid.entries - np.int8(1)])
    return both.view("V8").reshape(-1)


def _look_up(table: NDArray[np.void], indices: U8 | Indices) -> I8:
    """Bytes of the elements of ``table`` [n, …] at ``indices`` [n, m]."""
    return np.take(table, indices, mode="clip").view(np.int8)


def _eight_signs() -> I8:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return -bits.view(np.int8)


def _seven_signs() -> I8:
    signs = _eight_signs()[:128]
    signs[:, 7] = -(signs.sum(axis=1) & 1)  # bit 7 was 0
    return signs


# -1 for each bit that is set: by 8 bits, and by 7 that an eighth makes even.
_EIGHT_SIGNS = _eight_signs().view("V8").reshape(-1)
_SEVEN_SIGNS = _seven_signs().view("V8").reshape(-1)
