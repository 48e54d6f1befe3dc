"""What every format reader returns: metadata, lazily mapped tensors, the file's conventions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wgllm.quant import QuantFormat

if TYPE_CHECKING:
    from wgllm.formats.reading import ReadFile


def _nothing() -> None:
    return


@dataclass(frozen=True)
class TensorView:
    """A tensor as it lies in the file. Nothing is read until ``data`` is.

    Those that are made of others when they are used (``wgllm.formats.views``) have the same methods; ``blocks`` reads
    them in pieces, while their ``data`` is a copy of the whole.
    """

    name: str
    shape: tuple[int, ...]
    """Row-major, as in NumPy: a matmul weight is (outputs, inputs)."""
    format: QuantFormat
    data: NDArray[np.uint8]
    """The bytes, read-only and zero-copy: uint8 [nbytes]."""
    forget: Callable[[], None] = field(default=_nothing, repr=False, compare=False)
    """Tells the system that the bytes need not be in memory: it reads them again when they are used again."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size // self.format.block_size * self.format.type_size

    @property
    def n_rows(self) -> int:
        """Product of all dimensions but the last."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows ``start:stop`` (all leading dimensions flattened) as float32 [stop - start, shape[-1]]."""
        stop = self.n_rows if stop is None else stop
        out = np.empty((stop - start, self.shape[-1]), np.float32)
        self.rows_into(out, start)
        return out

    def rows_into(self, out: NDArray[np.float32], start: int = 0) -> None:
        """Dequantizes rows ``start : start + len(out)`` into ``out``: C-contiguous float32 [n, shape[-1]]."""
        fmt = self.format
        per_row = self.shape[-1] // fmt.block_size
        blocks = self.blocks(start * per_row, (start + len(out)) * per_row)
        fmt.dequantize_blocks(blocks, out.reshape(-1, fmt.block_size))

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The given rows as float32 [len(rows), shape[-1]]; only those rows are read."""
        fmt = self.format
        blocks = self.data.reshape(self.n_rows, fmt.row_bytes(self.shape[-1]))[rows]
        out = np.empty((len(rows), self.shape[-1]), np.float32)
        fmt.dequantize_blocks(blocks.reshape(-1, fmt.type_size), out.reshape(-1, fmt.block_size))
        return out

    def blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Blocks ``start:stop`` of the format, counted over the whole tensor: uint8 [stop - start, type_size]."""
        size = self.format.type_size
        return self.data[start * size : stop * size].reshape(-1, size)

    def sample(self, start: int, stop: int) -> bytes:
        """Bytes ``start:stop``, or fewer where the tensor ends; nothing else is read."""
        size = self.format.type_size
        first, stop = start // size, min(stop, self.nbytes)
        return self.blocks(first, -(-stop // size)).tobytes()[start - first * size : stop - first * size]

    def part(self, first: int, count: int) -> TensorView:
        """``count`` rows of a matrix, or numbers of a vector whose format has no blocks. Nothing is copied."""
        size = self.nbytes // self.shape[0]
        data = self.data[first * size : (first + count) * size]
        return replace(self, shape=(count, *self.shape[1:]), data=data)

    def flat(self) -> TensorView:
        """The vector of its numbers, row by row."""
        return replace(self, shape=(self.size,))

    def kept(self) -> TensorView:
        """The same tensor for use again and again: one that has to be made lies in memory then."""
        return self

    def array(self) -> NDArray[np.float32]:
        """The whole tensor as float32 in ``shape``."""
        return self.rows().reshape(self.shape)


@dataclass(frozen=True)
class Conventions:
    """How this file lays out what others lay out differently. Stated here, never rewritten on reading."""

    rope_interleaved: bool = False
    """Q and K rows are permuted so that rope turns neighbours (2i, 2i+1); else halves (i, i + D/2)."""
    norm_offset: float = 0.0
    """What a norm adds to its weight (Gemma's 1 + w where the file has w)."""


class Overlay(Mapping[str, Any]):
    """Metadata with some values replaced or added."""

    def __init__(self, below: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self._below = below
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._below[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._below
        yield from (key for key in self._values if key not in self._below)

    def __len__(self) -> int:
        return len(self._below.keys() | self._values.keys())


@dataclass
class ModelFile:
    """An opened model. ``metadata`` is under GGUF's keys, ``tensors`` under GGUF's names."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorView]
    conventions: Conventions = field(default_factory=Conventions)
    closer: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    """Closes the files; called once, by ``close``."""
    files: Sequence[ReadFile] = field(default=(), repr=False, compare=False)
    """Those with the weights, where they are read instead of mapped."""

    @property
    def architecture(self) -> str:
        """``general.architecture``, or an empty string when the file has none (vocabularies may not)."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    @property
    def chat_template(self) -> str | None:
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None

    def override(self, values: Mapping[str, Any]) -> None:
        """Puts ``values`` over the file's metadata, for this opened file only."""
        if values:
            self.metadata = Overlay(self.metadata, values)

    def close(self) -> None:
        """Empties ``metadata`` and ``tensors`` and lets the mapping go.

        Arrays that were taken from them before stay valid: the mapping lives as long as the last of them. From files
        that are read instead, nothing more comes.
        """
        self.metadata, self.tensors = {}, {}
        closer, self.closer = self.closer, None
        if closer is not None:
            closer()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
