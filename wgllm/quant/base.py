"""What a block format is: how many numbers make a block, how many bytes, and the way between the two."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import UsageError
from wgllm.quant import packing

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


class QuantFormat(abc.ABC):
    """One GGUF tensor type. A row of ``n`` numbers is ``n / block_size`` blocks of ``type_size`` bytes each.

    Subclasses that have a ``name`` register themselves, with one instance under ``type_id`` and ``name``.
    """

    name: str
    """The name GGUF tools print, such as ``Q4_K``."""
    type_id: int
    """The number in the file (ggml's ``enum ggml_type``)."""
    block_size: int
    """Numbers per block."""
    type_size: int
    """Bytes per block."""
    planes: packing.Planes
    """What shaders read apart: bytes ``start, stop`` of each block, in the order of the planes."""
    power_scales: bool = False
    """Whether the scale of a block is its byte 0, from which 127 is 1 and each more doubles."""

    _by_id: ClassVar[dict[int, QuantFormat]] = {}
    _by_name: ClassVar[dict[str, QuantFormat]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            if cls.type_id in QuantFormat._by_id or cls.name in QuantFormat._by_name:
                raise TypeError(f"there already is a format {cls.name} or type number {cls.type_id}")
            instance = cls()
            QuantFormat._by_id[cls.type_id] = instance
            QuantFormat._by_name[cls.name] = instance

    @abc.abstractmethod
    def dequantize_blocks(self, blocks: U8, out: F32) -> None:
        """Writes the numbers of ``blocks [n, type_size]`` to ``out [n, block_size]``, bit-exact with ggml.

        Both are C-contiguous. Releases the interpreter's lock for most of the time, so that threads can share
        the rows of a tensor; a call works for one thread.
        """

    def quantize_blocks(self, values: F32) -> U8:
        """The blocks ``[n, type_size]`` of ``values [n, block_size]``, equal to the reference quantizer's.

        Raises UsageError for the formats that wgllm only reads.
        """
        raise UsageError(f"wgllm reads {self.name} but cannot quantize to it")

    @property
    def table(self) -> bytes:
        """What shaders look quants up in, a multiple of 16 bytes. It lies before the planes."""
        return b""

    def layout(self, n_blocks: int) -> packing.Layout:
        """Where ``n_blocks`` blocks lie when they are packed."""
        return packing.layout(self.planes, n_blocks, self.block_size, self.table)

    def pack(self, blocks: U8) -> packing.Packed:
        """``blocks [n, type_size]`` as shaders read them."""
        layout = self.layout(len(blocks))
        words = np.zeros(layout.size, np.uint32)
        for at, piece in layout.pieces(blocks):
            words.view(np.uint8)[at : at + piece.size] = piece
        return packing.Packed(layout, words)

    @property
    def wgsl(self) -> str:
        """The shader file that reads this format."""
        return f"quant/{self.name.lower()}.wgsl"

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of ``n`` numbers; ``n`` must be a multiple of the block size."""
        if n % self.block_size:
            raise ValueError(f"{self.name} rows hold multiples of {self.block_size} numbers, not {n}")
        return n // self.block_size * self.type_size

    def __repr__(self) -> str:
        return f"<{self.name}>"


def format_by_id(type_id: int) -> QuantFormat | None:
    """The format with this number in GGUF files, or None when wgllm has none."""
    return QuantFormat._by_id.get(type_id)


def format_by_name(name: str) -> QuantFormat:
    """The format of this name (any case). Raises KeyError."""
    return QuantFormat._by_name[name.upper()]


def all_formats() -> Iterator[QuantFormat]:
    """Every registered format, by its number in GGUF files."""
    yield from (QuantFormat._by_id[i] for i in sorted(QuantFormat._by_id))
