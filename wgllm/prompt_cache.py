"""What the cache holds of a prompt, in a file: read once, the prompt need not be computed again.

The file: magic, version, length of the header (u32 each), length of the file (u64), the header (JSON: the model's
fingerprint, the KV type, the arrays with their shapes), the arrays one after the other, SHA-256 of all that.
Lengths are checked against the file's before memory is taken, and nothing is used before the hash is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wgllm.backends.base import StateArray
from wgllm.cache import SlotState
from wgllm.errors import PromptCacheError
from wgllm.formats.model_file import ModelFile

_MAGIC = b"wgllmkv\n"
_VERSION = 1
_START = struct.Struct("<8sIIQ")
_HASH_BYTES = 32
_MAX_HEADER = 16 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"i4": np.dtype("<i4"), "f2": np.dtype("<f2"), "f4": np.dtype("<f4")}
_SAMPLE = 256

Arrays = Sequence[Mapping[str, StateArray]]


def fingerprint(file: ModelFile, identity: object) -> str:
    """What tells a model from others: its numbers, its tensors' names, shapes and types, and some bytes of each."""
    digest = hashlib.sha256(repr(identity).encode())
    for name, tensor in sorted(file.tensors.items()):
        digest.update(repr((name, tensor.shape, tensor.format.name, tensor.nbytes)).encode())
        middle = tensor.nbytes // 2
        digest.update(tensor.sample(middle, middle + _SAMPLE))
    return digest.hexdigest()


def write(path: Path, model: str, kv_type: str, state: SlotState, arrays: Arrays) -> None:
    """Writes a file that ``read`` takes, all of it or nothing, readable for its owner alone."""
    tokens = np.asarray(state.tokens, np.int32)
    parts: list[tuple[int, str, StateArray]] = [(-1, "tokens", tokens)]
    parts += [(i, name, array) for i, own in enumerate(arrays) for name, array in own.items()]
    header = json.dumps(
        {
            "model": model,
            "kv_type": kv_type,
            "lost": state.lost,
            "segments": len(arrays),
            "arrays": [[i, name, _code(array), list(array.shape)] for i, name, array in parts],
        }
    ).encode()
    total = _START.size + len(header) + sum(a.nbytes for *_, a in parts) + _HASH_BYTES
    digest = hashlib.sha256()
    with _replacing(path) as file:
        for piece in _pieces(_START.pack(_MAGIC, _VERSION, len(header), total) + header, parts):
            digest.update(piece)
            file.write(piece)
        file.write(digest.digest())


def read(path: Path, model: str, kv_type: str) -> tuple[SlotState, list[dict[str, StateArray]]] | None:
    """What ``write`` wrote for this model; None when there is no such file. Raises PromptCacheError."""
    try:
        # Opening a FIFO would wait for a writer, so look first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise PromptCacheError(path, "is not a regular file")
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size, model, kv_type)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PromptCacheError(path, f"cannot be read: {error.strerror}") from error


def _read(
    path: Path, file: BinaryIO, size: int, model: str, kv_type: str
) -> tuple[SlotState, list[dict[str, StateArray]]]:
    digest = hashlib.sha256()

    def take(n: int) -> bytes:
        data = file.read(n)
        digest.update(data)
        return data

    start = take(_START.size)
    if start[: len(_MAGIC)] != _MAGIC[: len(start)] or not start:
        raise PromptCacheError(path, "is no prompt cache of wgllm")
    if len(start) < _START.size:
        raise PromptCacheError(path, "is cut off")
    _, version, header_bytes, total = _START.unpack(start)
    if version != _VERSION:
        raise PromptCacheError(path, f"has version {version}; this program reads version {_VERSION}")
    if total != size:
        raise PromptCacheError(path, f"has {size} bytes instead of {total}: it is cut off or damaged")
    room = size - _START.size - _HASH_BYTES - header_bytes
    if header_bytes > _MAX_HEADER or room < 0:
        raise PromptCacheError(path, "is damaged: its header does not fit")
    try:
        header = _Header(json.loads(take(header_bytes)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PromptCacheError(path, f"is damaged: {type(error).__name__} in its header") from None
    if header.model != model:
        raise PromptCacheError(path, "was made with another model, or other rope or override settings")
    if header.kv_type != kv_type:
        raise PromptCacheError(
            path, f"was made with KV cache type {header.kv_type}, not {kv_type} (-ctk sets it)"
        )
    if sum(dtype.itemsize * math.prod(shape) for _, _, dtype, shape in header.arrays) != room:
        raise PromptCacheError(path, "is damaged: its arrays do not add up to its size")
    made: list[dict[str, StateArray]] = [{} for _ in range(header.segments)]
    tokens: list[int] = []
    for segment, name, dtype, shape in header.arrays:
        data = take(dtype.itemsize * math.prod(shape))
        try:
            array = np.frombuffer(data, dtype).reshape(shape) if data else np.empty(shape, dtype)
        except ValueError:  # shorter than it was, or no numbers in a shape that overflows
            raise PromptCacheError(path, "is damaged: an array does not have its shape") from None
        if segment < 0:
            tokens = array.tolist()
        else:
            made[segment][name] = array
    if file.read(_HASH_BYTES) != digest.digest():
        raise PromptCacheError(path, "is damaged: its contents do not have the hash that they should have")
    return SlotState(tokens, header.lost), made


class _Header:
    """The header, every field checked. Raises ValueError, TypeError, KeyError or AttributeError."""

    def __init__(self, data: Any) -> None:
        self.model: str = data["model"]
        self.kv_type: str = data["kv_type"]
        self.segments = _count(data["segments"])
        self.lost = {str(name): _count(first) for name, first in data["lost"].items()}
        self.arrays: list[tuple[int, str, np.dtype[Any], tuple[int, ...]]] = []
        for i, (segment, name, code, shape) in enumerate(data["arrays"]):
            if (segment == -1) != (i == 0) or (i and not _count(segment) < self.segments):
                raise ValueError("segment")
            if (i == 0 and (code != "i4" or len(shape) != 1)) or len(shape) > 4:
                raise ValueError("shape")
            self.arrays.append((segment, str(name), _DTYPES[code], tuple(map(_count, shape))))
        if not self.arrays or self.segments > len(self.arrays):
            raise ValueError("arrays")


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError("count")
    return value


def _code(array: StateArray) -> str:
    return next(code for code, dtype in _DTYPES.items() if dtype == array.dtype)


def _pieces(start: bytes, parts: Sequence[tuple[int, str, StateArray]]) -> Iterator[bytes]:
    yield start
    for _, _, array in parts:
        if array.size:
            yield np.ascontiguousarray(array, _DTYPES[_code(array)]).tobytes()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when it is complete."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(
            partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PromptCacheError(path, f"cannot be written: {error.strerror}") from error
