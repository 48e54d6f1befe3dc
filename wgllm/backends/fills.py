"""What fills a plan's weights: packed rows, small parameters and rope tables, as bytes in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from wgllm.backends.numpy import RopeTable
from wgllm.formats.model_file import TensorView
from wgllm.plan import Fill, Plan, Rows

Bytes = NDArray[np.uint8]


def fill_pieces(fill: Fill, weights: Mapping[str, TensorView]) -> Iterator[tuple[int, Bytes]]:
    """Bytes of the fill's region and where in it they begin, in multiples of 4; the rest of the region is zero."""
    if fill.kind == "rope":
        factors = [weights[r.tensor].array() for r in fill.rows]
        table = RopeTable(fill.dim, fill.theta, fill.scale, factors[0] if factors else None, fill.magnitude)
        yield 0, _bytes(table.turns(np.arange(fill.positions, dtype=np.int32)).pairs)
    elif fill.kind == "numbers":
        yield 0, _bytes(np.concatenate([weights[r.tensor].array()[r.first : r.last] for r in fill.rows]))
    else:
        parts = [_Blocks(weights[r.tensor], r) for r in fill.rows]
        fmt = weights[fill.rows[0].tensor].format
        yield from fmt.layout(sum(map(len, parts))).pieces(*parts)


class _Blocks:
    """The blocks [n, type_size] of some rows, read a slice at a time."""

    def __init__(self, view: TensorView, rows: Rows) -> None:
        per_row = view.shape[-1] // view.format.block_size
        self._view = view
        self._first = rows.first * per_row
        self.shape = ((rows.last - rows.first) * per_row, view.format.type_size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Bytes:
        start, stop, _ = part.indices(len(self))
        return self._view.blocks(self._first + start, self._first + stop)


def packed_file(plan: Plan, weights: Mapping[str, TensorView]) -> Iterator[Bytes]:
    """All regions of the plan's weights, one after the other: what a browser needs beside the plan."""
    for fill in plan.fills:
        region = np.zeros(fill.region.size, np.uint8)
        for at, piece in fill_pieces(fill, weights):
            region[at : at + piece.size] = piece
        yield region


def _bytes(array: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
