"""The header of a GGUF file: bytes in, checked metadata and tensor places out. No file is touched here.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3 have the same
little-endian layout. Every count and size is compared with the bytes that are there before it is used.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import ModelFileError
from wgllm.formats.gguf_metadata import Metadata, StringArray, later_bools, later_text
from wgllm.quant import QuantFormat, format_by_id

DEFAULT_ALIGNMENT = 32
MAX_INT64 = (1 << 63) - 1
MAX_KEY_BYTES = (1 << 16) - 1
MAX_STRING_BYTES = 1 << 30
MAX_ARRAY_ITEMS = 1 << 30
MAX_NAME_BYTES = 63
MAX_DIMS = 4

# What a file of many gigabytes could still declare honestly; these bound the time and memory of opening it.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22

# The fewest bytes that one of each can take.
_MIN_KEY = 8 + 1 + 4 + 1
_MIN_TENSOR = 8 + 1 + 4 + 4 + 8

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HEADER = struct.Struct("<4sIQQ")
_ARRAY_HEADER = struct.Struct("<IQ")
_DIMS_TYPE_OFFSET = tuple(struct.Struct(f"<{n}qIQ") for n in range(MAX_DIMS + 1))

_BOOL, _STRING, _ARRAY = 7, 8, 9
_VALUE_TYPES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
_NUMBERS = {
    number: (struct.Struct("<" + code), np.dtype(dtype))
    for number, code, dtype in [
        (0, "B", "u1"),
        (1, "b", "i1"),
        (2, "H", "<u2"),
        (3, "h", "<i2"),
        (4, "I", "<u4"),
        (5, "i", "<i4"),
        (6, "f", "<f4"),
        (_BOOL, "?", "u1"),
        (10, "Q", "<u8"),
        (11, "q", "<i8"),
        (12, "d", "<f8"),
    ]
}

# ggml's enum ggml_type, those that it has dropped included: a name says more than "type 35".
_GGML_TYPE_NAMES = (
    "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K "
    "IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 "
    "Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 IQ4_NL_4_8 IQ4_NL_8_8 MXFP4 NVFP4 Q1_0"
)
_GGML_TYPES = _GGML_TYPE_NAMES.split()

_NOT_GGUF = (
    (b"version https://git-lfs", "this is a Git LFS pointer, not the model; fetch it with 'git lfs pull'"),
    (b"<", "this is a web page, not a model; the download went wrong"),
    (b"PK\x03\x04", "this is a zip archive (PyTorch?), not GGUF"),
    (b"lmgg", "this is GGML, which came before GGUF; convert the model again"),
    (b"fmgg", "this is GGML, which came before GGUF; convert the model again"),
    (b"tjgg", "this is GGML, which came before GGUF; convert the model again"),
)


class TensorInfo(NamedTuple):
    """Where one tensor lies: bytes ``start:stop`` of the file."""

    name: str
    shape: tuple[int, ...]
    """Row-major: the file's dimensions reversed."""
    format: QuantFormat
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its data."""

    version: int
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    alignment: int
    """Bytes; every tensor starts at a multiple of it."""


def parse_header(buffer: memoryview, path: Path) -> Header:
    """Reads the header of the GGUF file in ``buffer`` (uint8, the whole file); ``path`` is for messages.

    What it returns refers to ``buffer``. Raises ModelFileError for anything malformed or not supported, a
    tensor that does not lie within ``buffer`` included.
    """
    cursor = _Cursor(buffer.toreadonly(), path)
    version, n_tensors, n_keys = _read_counts(cursor)
    metadata = _read_metadata(cursor, n_keys)
    alignment = _alignment(cursor, metadata)
    infos = _read_tensors(cursor, n_tensors, alignment)
    return Header(version, Metadata(metadata), _place(cursor, infos, alignment), alignment)


class _Cursor:
    """A place in the buffer, and the name of what is being read there."""

    def __init__(self, buffer: memoryview, path: Path) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.path = path
        self.pos = 0
        self.field = "header"
        self.strings = 0

    def fail(self, problem: str) -> NoReturn:
        raise ModelFileError(self.path, self.field, problem)

    def room(self, nbytes: int, what: str) -> None:
        """Fails unless ``nbytes`` more bytes are there."""
        if nbytes > self.size - self.pos:
            self.fail(f"the file ends inside {what} (it has {self.size} bytes)")

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        pos = self.pos
        if layout.size > self.size - pos:
            self.room(layout.size, what)
        self.pos = pos + layout.size
        return layout.unpack_from(self.buffer, pos)

    def take(self, nbytes: int, what: str) -> memoryview:
        pos = self.pos
        if nbytes > self.size - pos:
            self.room(nbytes, what)
        self.pos = pos + nbytes
        return self.buffer[pos : self.pos]

    def name(self, limit: int, what: str) -> str:
        """A key or a tensor name: 1 to ``limit`` bytes of UTF-8."""
        (length,) = self.unpack(_U64, f"the length of {what}")
        if not length:
            self.fail(f"{what} is empty")
        if length > limit:
            self.fail(f"{what} has {_signed(length)} bytes; 1 to {limit} are allowed")
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys."""
    magic = bytes(cursor.buffer[:4])
    if magic != b"GGUF":
        start = bytes(cursor.buffer[:64])
        if start[8:9] == b"{":
            cursor.fail("this looks like safetensors, not GGUF")
        cursor.fail(
            next(
                (problem for begin, problem in _NOT_GGUF if start.lstrip().startswith(begin)),
                f"not a GGUF file: it begins with {magic!r}" if magic else "the file is empty",
            )
        )
    if cursor.size >= 8:  # a version that is not ours may have another layout: say so first
        _check_version(cursor, _U32.unpack_from(cursor.buffer, 4)[0])
    _, version, n_tensors, n_keys = cursor.unpack(_HEADER, "the header")
    remaining = cursor.size - cursor.pos
    for count, least, limit, what in (
        (n_tensors, _MIN_TENSOR, MAX_TENSORS, "tensors"),
        (n_keys, _MIN_KEY, MAX_KEYS, "metadata keys"),
    ):
        if count > MAX_INT64:
            cursor.fail(f"the number of {what} is negative ({_signed(count)})")
        if count * least > remaining:
            cursor.fail(f"{count} {what} cannot fit into a file of {cursor.size} bytes")
        if count > limit:
            cursor.fail(f"{count} {what}; wgllm reads at most {limit}")
    return version, n_tensors, n_keys


def _check_version(cursor: _Cursor, version: int) -> None:
    if version in (2, 3):
        return
    if version and not version & 0xFFFF:
        cursor.fail("this is a big-endian GGUF file; wgllm reads little-endian ones")
    if version == 1:
        cursor.fail("GGUF version 1 is no longer read; convert the model again (2 and 3 are)")
    if version == 0:
        cursor.fail("GGUF version 0 does not exist (2 and 3 are read)")
    cursor.fail(f"GGUF version {version} is newer than wgllm knows (2 and 3 are read)")


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i in range(count):
        cursor.field = f"metadata key {i + 1} of {count}"
        key = cursor.name(MAX_KEY_BYTES, "the key")
        cursor.field = key if len(key) <= 80 else key[:80] + "…"  # a hostile one may be 64 KiB
        if key in values:
            cursor.fail("the key occurs twice")
        (value_type,) = cursor.unpack(_U32, "the type")
        if key == "general.alignment" and value_type != 4:
            cursor.fail(f"must be a u32, not {_value_type(value_type)}")
        if value_type in _NUMBERS:
            (values[key],) = cursor.unpack(_NUMBERS[value_type][0], "the value")
        elif value_type == _STRING:
            raw = _read_string(cursor)
            values[key] = later_text(raw, cursor.path, key)
            if key == "general.architecture":  # the one text that opening needs
                if len(raw) > MAX_NAME_BYTES:
                    cursor.fail(f"has {len(raw)} bytes; at most {MAX_NAME_BYTES} are allowed")
                values[key] = values[key]()
        elif value_type == _ARRAY:
            values[key] = _read_array(cursor)
        else:
            cursor.fail(f"unknown value type {value_type}")
    return values


def _read_string(cursor: _Cursor) -> memoryview:
    (length,) = cursor.unpack(_U64, "the length of the string")
    if length > MAX_STRING_BYTES:
        cursor.fail(f"a string of {_signed(length)} bytes; 0 to {MAX_STRING_BYTES} are allowed")
    return cursor.take(length, "the string")


def _read_array(cursor: _Cursor) -> Any:
    item_type, count = cursor.unpack(_ARRAY_HEADER, "the type and length of the array")
    if item_type == _ARRAY:
        cursor.fail("arrays of arrays are not supported")
    if item_type != _STRING and item_type not in _NUMBERS:
        cursor.fail(f"unknown value type {item_type} in the array")
    if count > MAX_ARRAY_ITEMS:
        cursor.fail(f"an array of {_signed(count)} items; 0 to {MAX_ARRAY_ITEMS} are allowed")
    if item_type == _STRING:
        return _scan_strings(cursor, count)
    dtype = _NUMBERS[item_type][1]
    raw: NDArray[np.uint8] = np.frombuffer(cursor.take(count * dtype.itemsize, "the array"), np.uint8)
    return later_bools(raw) if item_type == _BOOL else raw.view(dtype)


def _scan_strings(cursor: _Cursor, count: int) -> StringArray:
    """Checks every length and notes where each string ends; the text itself is not looked at."""
    cursor.strings += count
    if cursor.strings > MAX_STRINGS:
        cursor.fail(f"the arrays up to here have {cursor.strings} strings; wgllm reads at most {MAX_STRINGS}")
    cursor.room(count * 8, "the array")
    buffer, pos, size = cursor.buffer, cursor.pos, cursor.size
    bounds = array("q", (pos,))
    append, unpack = bounds.append, _U64.unpack_from
    try:
        for _ in range(count):
            (length,) = unpack(buffer, pos)
            pos += 8 + length
            if pos > size or length > MAX_STRING_BYTES:
                break
            append(pos)
    except struct.error:  # no 8 bytes left for a length
        cursor.fail(f"the file ends inside string {len(bounds) - 1} of {count} (it has {size} bytes)")
    if len(bounds) <= count:
        which = f"string {len(bounds) - 1} of {count}"
        cursor.fail(f"{which} has {_signed(length)} bytes, more than the file or than allowed")
    cursor.pos = pos
    return StringArray(buffer, np.frombuffer(bounds, np.int64), cursor.path, cursor.field)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    cursor.field = "general.alignment"
    alignment: int = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1):
        cursor.fail(f"{alignment} is not a power of two")
    return alignment


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> list[TensorInfo]:
    """The tensors with places relative to the start of the data."""
    infos = []
    names: set[str] = set()
    for i in range(count):
        cursor.field = f"tensor {i + 1} of {count}"
        info = _read_tensor(cursor, alignment)
        if info.name in names:
            cursor.fail("the tensor occurs twice")
        names.add(info.name)
        infos.append(info)
    return infos


def _read_tensor(cursor: _Cursor, alignment: int) -> TensorInfo:
    name = cursor.name(MAX_NAME_BYTES, "the name")
    cursor.field = f"tensor {name}"
    (n_dims,) = cursor.unpack(_U32, "the number of dimensions")
    if n_dims > MAX_DIMS:
        cursor.fail(f"has {n_dims} dimensions; at most {MAX_DIMS} are allowed")
    *dims, type_id, offset = cursor.unpack(_DIMS_TYPE_OFFSET[n_dims], "the dimensions, type and offset")

    n_elements = bound = 1
    for dim in dims:
        if dim < 0:
            cursor.fail(f"has a negative dimension ({dim})")
        n_elements *= dim
        bound *= dim or 1  # so that products of some of the dimensions fit too, when another one is 0
    if bound > MAX_INT64:
        cursor.fail("has 2**63 elements or more")

    fmt = format_by_id(type_id)
    if fmt is None:
        cursor.fail(
            f"type {_GGML_TYPES[type_id]} is not supported"
            if type_id < len(_GGML_TYPES)
            else f"unknown tensor type {type_id}"
        )
    row = dims[0] if dims else 1
    if row % fmt.block_size:
        cursor.fail(f"rows of {row} numbers are not whole {fmt.name} blocks of {fmt.block_size}")
    nbytes = n_elements // fmt.block_size * fmt.type_size
    if nbytes > MAX_INT64:
        cursor.fail("has 2**63 bytes or more")

    if offset > MAX_INT64:
        cursor.fail(f"its offset is negative ({_signed(offset)})")
    if offset % alignment:
        cursor.fail(f"its offset {offset} is not a multiple of the alignment {alignment}")
    if offset + _padded(nbytes, alignment) > MAX_INT64:
        cursor.fail("its padded end is at 2**63 bytes or more")
    return TensorInfo(name, tuple(reversed(dims)) or (1,), fmt, offset, offset + nbytes)


def _place(cursor: _Cursor, infos: list[TensorInfo], alignment: int) -> tuple[TensorInfo, ...]:
    """The tensors with places in the file: all of them inside it, no two of them on the same bytes."""
    begin, size = _padded(cursor.pos, alignment), cursor.size
    placed = [info._replace(start=begin + info.start, stop=begin + info.stop) for info in infos]
    last: TensorInfo | None = None
    for info in sorted(placed, key=lambda info: (info.start, info.stop)):
        cursor.field = f"tensor {info.name}"
        if info.start == info.stop:
            if info.start > max(size, begin):
                cursor.fail(f"starts at byte {info.start}, past the end of the file ({size} bytes)")
            continue
        if info.stop > size:
            cursor.fail(f"ends at byte {info.stop}, past the end of the file ({size} bytes)")
        if last is not None and info.start < last.stop:
            cursor.fail(f"overlaps tensor {last.name}")
        last = info
    # Writers pad the last tensor, or do not; a part of the padding is what a cut-off copy has.
    if last is not None and last.stop < size < _padded(last.stop, alignment):
        cursor.field = f"tensor {last.name}"
        cursor.fail(f"the file is cut off in the padding after it (it has {size} bytes)")
    return tuple(placed)


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _signed(value: int) -> int:
    """A u64 as the i64 that it more likely is."""
    return value - (1 << 64) if value > MAX_INT64 else value


def _value_type(number: int) -> str:
    return _VALUE_TYPES[number] if number < len(_VALUE_TYPES) else f"unknown type {number}"
