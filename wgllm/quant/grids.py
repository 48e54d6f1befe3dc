"""The grids of the IQ formats: rows of 4 or 8 small numbers, of which quants are indices.

A grid's numbers are places among a few levels. ``grids.txt`` has them as packed bits, from ggml.
"""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]


@dataclass(frozen=True)
class Grid:
    """Entries of ``width`` numbers, each in one byte."""

    name: str
    """In ``grids.txt``."""
    levels: tuple[int, ...]
    """At most 128 in magnitude."""
    width: int = 8
    """4 or 8: then each number has 16 / width bits there."""

    @functools.cached_property
    def packed(self) -> U8:
        """What ``grids.txt`` says: two bytes for each entry."""
        return _packed_grids()[self.name]

    @functools.cached_property
    def entries(self) -> I8:
        """The numbers [entries, width]."""
        bits = 16 // self.width
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        places = (self.packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)
        entries: I8 = np.array(self.levels, np.int8)[places].reshape(-1, self.width)
        return entries

    @functools.cached_property
    def elements(self) -> NDArray[np.void]:
        """The entries as elements that NumPy looks up at once."""
        return self.entries.view(f"V{self.width}").reshape(-1)

    @functools.cached_property
    def table(self) -> bytes:
        """What a shader looks up: of 4 numbers a word of their bytes, of 8 half a word of their places."""
        return (self.entries if self.width == 4 else self.packed).tobytes()


@functools.cache
def _packed_grids() -> dict[str, U8]:
    text = importlib.resources.files("wgllm.quant").joinpath("grids.txt").read_text(encoding="ascii")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            lines = found.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return {name: np.frombuffer(bytes.fromhex("".join(lines)), np.uint8) for name, lines in found.items()}
