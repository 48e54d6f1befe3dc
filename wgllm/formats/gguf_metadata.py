"""GGUF metadata in memory: numbers as they are, text decoded when it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import ModelFileError

_BLOCK = 1 << 14
"""Strings decoded at a time while iterating: bounds what a half-read array costs."""


class StringArray(Sequence[str]):
    """A metadata array of strings (tokens, merges), left in the file until it is read.

    Tokens need not be UTF-8 by themselves: ``bytes_list`` gives any array, while reading as ``str`` raises
    ModelFileError at the first element that is not UTF-8.
    """

    __slots__ = ("_bounds", "_buffer", "_key", "_path")

    def __init__(self, buffer: memoryview, bounds: NDArray[np.int64], path: Path, key: str) -> None:
        """``bounds`` [n + 1]: where the 8-byte length of element i is; its text ends at ``bounds[i + 1]``."""
        self._buffer = buffer
        self._bounds = bounds
        self._path = path
        self._key = key

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._decode(start, stop)
            return [self[i] for i in range(start, stop, step)]
        i = range(len(self))[index]
        return self._decode(i, i + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self._decode(start, min(start + _BLOCK, len(self)))

    def __repr__(self) -> str:
        return f"<StringArray {self._key} of {len(self)}>"

    def copied(self) -> StringArray:
        """The same, with its bytes in memory."""
        first, last = int(self._bounds[0]), int(self._bounds[-1])
        data = memoryview(self._buffer[first:last].tobytes())
        return StringArray(data, self._bounds - first, self._path, self._key)

    def tolist(self) -> list[str]:
        """Every element. Raises ModelFileError naming the first one that is not UTF-8."""
        return self._decode(0, len(self))

    def bytes_list(self) -> list[bytes]:
        """Every element as the file has it, UTF-8 or not."""
        return self._bytes(0, len(self))

    def _bytes(self, start: int, stop: int) -> list[bytes]:
        if stop <= start:
            return []
        bounds: list[int] = self._bounds[start : stop + 1].tolist()
        base = bounds[0]
        # One copy and then slices of bytes: half the time of slicing the map once per token.
        block = self._buffer[base : bounds[-1]].tobytes()
        return [block[a - base + 8 : b - base] for a, b in pairwise(bounds)]

    def _decode(self, start: int, stop: int) -> list[str]:
        values = self._bytes(start, stop)
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError:
            bad = next(i for i, value in enumerate(values) if not _is_utf8(value))
            raise ModelFileError(self._path, f"{self._key}[{start + bad}]", "is not UTF-8") from None


class Metadata(Mapping[str, Any]):
    """The key-value section, in the file's order.

    int, float, bool and str; arrays of numbers as read-only NumPy views of the file; arrays of strings as
    StringArray. Reading a string that is not UTF-8 raises ModelFileError with its key; the file still opens,
    since nothing may need that key.
    """

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        """A ``functools.partial`` among ``values`` is called when its key is first read."""
        self._values = values

    def copied(self) -> Metadata:
        """The same, of which nothing lies in the file any more."""
        return Metadata({key: _copied(value) for key, value in self._values.items()})

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, functools.partial):
            value = self._values[key] = value()
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Metadata of {len(self)} keys>"


def _copied(value: Any) -> Any:
    if isinstance(value, StringArray):
        return value.copied()
    if isinstance(value, functools.partial):
        raw, *others = value.args
        return functools.partial(value.func, _copied(raw), *others)
    if isinstance(value, memoryview):
        return memoryview(value.tobytes())
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
    return value


def later_text(raw: memoryview, path: Path, key: str) -> functools.partial[str]:
    """A string value that is decoded on reading."""
    return functools.partial(_text, raw, path, key)


def later_bools(raw: NDArray[np.uint8]) -> functools.partial[NDArray[np.bool_]]:
    """An array of bools that is made on reading: bytes other than 0 and 1 are no NumPy bools."""
    return functools.partial(_bools, raw)


def _text(raw: memoryview, path: Path, key: str) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise ModelFileError(path, key, "is not UTF-8") from None


def _bools(raw: NDArray[np.uint8]) -> NDArray[np.bool_]:
    values: NDArray[np.bool_] = np.not_equal(raw, 0)
    values.flags.writeable = False
    return values


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
