"""What fills a plan's weights: packed rows, small parameters and rope tables, as bytes in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wgllm.backends.numpy import RopeTable
from wgllm.formats.model_file import TensorView
from wgllm.plan import Fill, Plan, Rows
from wgllm.quant.packing import Layout

Bytes = NDArray[np.uint8]

# Bytes of rope's table that are made at a time.
_PIECE = 4 << 20


def fill_pieces(fill: Fill, weights: Mapping[str, TensorView]) -> Iterator[tuple[int, Bytes]]:
    """Bytes of the fill's region and where in it they begin, in multiples of 4; the rest of the region is zero."""
    if fill.kind == "rope":
        table, row = _rope_table(fill, weights), 4 * fill.dim
        step = max(1, _PIECE // row)
        for first in range(0, fill.positions, step):
            yield row * first, _bytes(table.table(first, min(first + step, fill.positions)))
    elif fill.kind == "numbers":
        yield 0, _bytes(np.concatenate([weights[r.tensor].array()[r.first : r.last] for r in fill.rows]))
    else:
        parts = [_Blocks(weights[r.tensor], r) for r in fill.rows]
        yield from _layout(fill, weights, parts).pieces(*parts)


def fill_bytes(fill: Fill, weights: Mapping[str, TensorView], start: int, stop: int) -> Bytes:
    """Bytes ``start:stop`` of the fill's region, zeros included. Takes little more memory than they do."""
    if fill.kind == "packed":
        parts = [_Blocks(weights[r.tensor], r) for r in fill.rows]
        return _layout(fill, weights, parts).read(start, stop, *parts)
    out = np.zeros(stop - start, np.uint8)
    if fill.kind == "rope":
        row = 4 * fill.dim
        first, last = start // row, min(-(-stop // row), fill.positions)
        if first < last:
            made = _bytes(_rope_table(fill, weights).table(first, last))[
                start - first * row : stop - first * row
            ]
            out[: made.size] = made
        return out
    at = 0
    for tensor, first, last in fill.rows:
        low, high = max(start, at), min(stop, at + 4 * (last - first))
        if low < high:
            numbers = _bytes(weights[tensor].array()[first:last])
            out[low - start : high - start] = numbers[low - at : high - at]
        at += 4 * (last - first)
    return out


def _rope_table(fill: Fill, weights: Mapping[str, TensorView]) -> RopeTable:
    factors = [weights[r.tensor].array() for r in fill.rows]
    return RopeTable(fill.dim, fill.theta, fill.scale, factors[0] if factors else None, fill.magnitude)


def _layout(fill: Fill, weights: Mapping[str, TensorView], parts: Sequence[_Blocks]) -> Layout:
    return weights[fill.rows[0].tensor].format.layout(sum(map(len, parts)))


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
