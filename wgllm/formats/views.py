"""Tensors that are made of others when they are used, a piece at a time: stacked, reordered, transposed, quantized."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wgllm.formats.model_file import TensorView
from wgllm.quant import QuantFormat

U8 = NDArray[np.uint8]

# Numbers that are quantized at a time: what that takes on the way stays in a core's cache.
_PIECE = 1 << 15


class DerivedView(TensorView):
    """A tensor that reads others. ``blocks`` makes what is asked for and keeps nothing."""

    def __init__(
        self, name: str, shape: tuple[int, ...], format: QuantFormat, sources: Sequence[TensorView]
    ) -> None:
        def forget() -> None:
            for source in sources:
                source.forget()

        for field, value in (("name", name), ("shape", shape), ("format", format), ("forget", forget)):
            object.__setattr__(self, field, value)

    @property
    def n_blocks(self) -> int:
        return self.size // self.format.block_size

    @property
    def data(self) -> U8:
        """A copy of the whole tensor, made at each use."""
        return self.blocks(0, self.n_blocks).reshape(-1)

    @abstractmethod
    def blocks(self, start: int, stop: int) -> U8: ...

    @property
    @abstractmethod
    def costly(self) -> bool:
        """Whether reading it is more than copying bytes."""

    def kept(self) -> TensorView:
        if not self.costly:
            return self
        view = TensorView(self.name, self.shape, self.format, self.data)
        self.forget()
        return view

    def part(self, first: int, count: int) -> TensorView:
        return RowsView(self.name, self, [(first, first + count)])

    def flat(self) -> TensorView:
        return FlatView(self)

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        out = np.empty((len(rows), self.shape[-1]), np.float32)
        for i, row in enumerate(rows.tolist()):
            self.rows_into(out[i : i + 1], row)
        return out

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


class StackedView(DerivedView):
    """Tensors of one shape [...] and format as one [n, ...]: experts that the file has one by one."""

    def __init__(self, name: str, parts: Sequence[TensorView]) -> None:
        first = parts[0]
        if any(p.shape != first.shape or p.format is not first.format for p in parts):
            raise ValueError("the parts differ in shape or format")
        super().__init__(name, (len(parts), *first.shape), first.format, parts)
        object.__setattr__(self, "parts", tuple(parts))

    parts: tuple[TensorView, ...]

    @property
    def costly(self) -> bool:
        return any(map(_costly, self.parts))

    def blocks(self, start: int, stop: int) -> U8:
        size = self.n_blocks // len(self.parts)
        found = [
            self.parts[i].blocks(max(0, start - i * size), min(size, stop - i * size))
            for i in range(start // max(1, size), -(-stop // max(1, size)))
        ]
        return found[0] if len(found) == 1 else np.concatenate([_none(self.format), *found])

    def kept(self) -> TensorView:
        return StackedView(self.name, [part.kept() for part in self.parts])


class ShareView(DerivedView):
    """Of each matrix of a stack [n, of · rows, K] the rows of one share: [n, rows, K]."""

    def __init__(self, name: str, source: TensorView, number: int, of: int) -> None:
        """``number`` counts from 0."""
        if len(source.shape) != 3 or source.shape[1] % of:
            raise ValueError(f"should be a stack of matrices whose rows are {of} equal shares")
        n, rows, width = source.shape
        super().__init__(name, (n, rows // of, width), source.format, [source])
        for field, value in (("_source", source), ("_number", number), ("_of", of)):
            object.__setattr__(self, field, value)

    _source: TensorView
    _number: int
    _of: int

    @property
    def costly(self) -> bool:
        return _costly(self._source)

    def blocks(self, start: int, stop: int) -> U8:
        size = self.n_blocks // max(1, self.shape[0])
        found = []
        while start < stop:
            matrix, at = divmod(start, size)
            end = min(stop, (matrix + 1) * size)
            first = (matrix * self._of + self._number) * size + at
            found.append(self._source.blocks(first, first + end - start))
            start = end
        return found[0] if len(found) == 1 else np.concatenate([_none(self.format), *found])


class RowsView(DerivedView):
    """Some rows of a tensor, in any order: a part of a fused matrix, or one whose heads lie interleaved."""

    def __init__(self, name: str, source: TensorView, runs: Sequence[tuple[int, int]]) -> None:
        """``runs``: the first and last (exclusive) rows of what is taken, one after the other."""
        rows = sum(stop - start for start, stop in runs)
        there = source.shape[0] if source.shape else 0
        if any(not 0 <= start < stop <= there for start, stop in runs):
            raise ValueError(f"rows up to {max(stop for _, stop in runs)} are not within {there}")
        super().__init__(name, (rows, *source.shape[1:]), source.format, [source])
        per_row = source.size // source.shape[0] // source.format.block_size
        firsts = [0, *accumulate((stop - start) * per_row for start, stop in runs)]
        for field, value in (
            ("_source", source),
            ("_starts", [start * per_row for start, _ in runs]),
            ("_firsts", firsts),
        ):
            object.__setattr__(self, field, value)

    _source: TensorView
    _starts: list[int]
    _firsts: list[int]

    @property
    def costly(self) -> bool:
        return _costly(self._source)

    def blocks(self, start: int, stop: int) -> U8:
        found = []
        i = bisect_right(self._firsts, start) - 1
        while start < stop:
            end = min(stop, self._firsts[i + 1])
            at = self._starts[i] - self._firsts[i]
            found.append(self._source.blocks(at + start, at + end))
            start, i = end, i + 1
        return found[0] if len(found) == 1 else np.concatenate([_none(self.format), *found])


class TransposedView(DerivedView):
    """A matrix [K, O] of single numbers as [O, K]."""

    def __init__(self, name: str, source: TensorView) -> None:
        if len(source.shape) != 2 or source.format.block_size != 1:
            raise ValueError("only matrices of single numbers can be transposed")
        super().__init__(name, source.shape[::-1], source.format, [source])
        object.__setattr__(self, "_source", source)

    _source: TensorView
    costly = True

    def blocks(self, start: int, stop: int) -> U8:
        width, size = self.shape[1], self.format.type_size
        first, last = start // max(1, width), -(-stop // max(1, width))
        # As one element per number; what is made are whole rows, of which the ends are cut off.
        numbers = self._source.data.view(f"V{size}").reshape(self._source.shape)
        rows = np.ascontiguousarray(numbers[:, first:last].T).reshape(-1)
        part: U8 = rows[start - first * width : stop - first * width].view(np.uint8).reshape(-1, size)
        return part


class QuantizedView(DerivedView):
    """A tensor of single numbers, rounded to a block format as it is read."""

    def __init__(self, source: TensorView, format: QuantFormat) -> None:
        if source.format.block_size != 1 or source.shape[-1] % format.block_size:
            raise ValueError("only rows of whole blocks of single numbers can be quantized")
        super().__init__(source.name, source.shape, format, [source])
        object.__setattr__(self, "_source", source)

    _source: TensorView
    costly = True

    def blocks(self, start: int, stop: int) -> U8:
        fmt, source = self.format, self._source
        out = np.empty((stop - start, fmt.type_size), np.uint8)
        step = max(1, _PIECE // fmt.block_size)
        for at in range(start, stop, step):
            end = min(stop, at + step)
            numbers = np.empty(((end - at) * fmt.block_size, 1), np.float32)
            source.format.dequantize_blocks(source.blocks(at * fmt.block_size, end * fmt.block_size), numbers)
            out[at - start : end - start] = fmt.quantize_blocks(numbers.reshape(-1, fmt.block_size))
        return out


class FlatView(DerivedView):
    """The numbers of a derived tensor as a vector."""

    def __init__(self, source: DerivedView) -> None:
        super().__init__(source.name, (source.size,), source.format, [source])
        object.__setattr__(self, "_source", source)

    _source: DerivedView

    @property
    def costly(self) -> bool:
        return self._source.costly

    def blocks(self, start: int, stop: int) -> U8:
        return self._source.blocks(start, stop)


def _costly(view: TensorView) -> bool:
    return isinstance(view, DerivedView) and view.costly


def _none(format: QuantFormat) -> U8:
    """No blocks, so that nothing at all has their width, too."""
    return np.empty((0, format.type_size), np.uint8)
