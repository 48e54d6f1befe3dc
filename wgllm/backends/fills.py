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
        table = RopeTable(fill.dim, fill.theta, fill.scale, factors[0] if factors else None)
        yield 0, _bytes(table.turns(np.arange(fill.positions, dtype=np.int32)).pairs)
    elif fill.kind == "numbers":
        yield 0, _bytes(np.concatenate([weights[r.tensor].array()[r.first : r.last] for r in fill.rows]))
    else:
        parts = [_blocks(weights[r.tensor], r) for r in fill.rows]
        fmt = weights[fill.rows[0].tensor].format
        yield from fmt.layout(sum(map(len, parts))).pieces(*parts)


def _blocks(view: TensorView, rows: Rows) -> Bytes:
    """[n, type_size]"""
    row_bytes = view.format.row_bytes(view.shape[-1])
    return view.data[rows.first * row_bytes : rows.last * row_bytes].reshape(-1, view.format.type_size)


def packed_file(plan: Plan, weights: Mapping[str, TensorView]) -> Iterator[Bytes]:
    """All regions of the plan's weights, one after the other: what a browser needs beside the plan."""
    for fill in plan.fills:
        region = np.zeros(fill.region.size, np.uint8)
        for at, piece in fill_pieces(fill, weights):
            region[at : at + piece.size] = piece
        yield region


def _bytes(array: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
