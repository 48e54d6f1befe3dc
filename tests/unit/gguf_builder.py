"""Writes GGUF files byte by byte, right ones and wrong ones, for the reader's tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
CODES |= {U64: "Q", I64: "q", F64: "d"}

# ggml type: (number, numbers per block, bytes per block)
TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_Q8_0, TYPE_Q4_K = 0, 1, 2, 8, 12
BLOCKS = {TYPE_F32: (1, 4), TYPE_F16: (1, 2), TYPE_Q4_0: (32, 18), TYPE_Q8_0: (32, 34), TYPE_Q4_K: (256, 144)}


def u32(value: int) -> bytes:
    return struct.pack("<I", value % 2**32)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value % 2**64)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    return text(value) if kind == STRING else struct.pack("<" + CODES[kind], value)


def kv(key: str | bytes, kind: int, value: Any) -> bytes:
    """One metadata entry."""
    return text(key) + u32(kind) + scalar(kind, value)


def kv_array(key: str | bytes, kind: int, values: Sequence[Any], count: int | None = None) -> bytes:
    """One metadata entry with an array; ``count`` is the lie told about its length."""
    count = len(values) if count is None else count
    return text(key) + u32(ARRAY) + u32(kind) + u64(count) + b"".join(scalar(kind, v) for v in values)


@dataclass
class T:
    """A tensor: ``dims`` in the file's order. What is None is laid out as it should be."""

    name: str | bytes
    dims: Sequence[int]
    type: int = TYPE_F32
    offset: int | None = None
    nbytes: int | None = None
    n_dims: int | None = None

    def size(self) -> int:
        if self.nbytes is not None:
            return self.nbytes
        n = 1
        for dim in self.dims:
            n *= dim
        per_block, block_bytes = BLOCKS[self.type]
        return n // per_block * block_bytes


@dataclass
class File:
    """A GGUF file; the fields left out are right."""

    kvs: Sequence[bytes] = ()
    tensors: Sequence[T] = ()
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None
    n_kvs: int | None = None
    data: bytes | None = None
    pad_end: bool = True
    tail: bytes = b""
    header_size: int = field(default=0, init=False)

    def build(self) -> bytes:
        infos, offset = [], 0
        for tensor in self.tensors:
            place = offset if tensor.offset is None else tensor.offset
            n_dims = len(tensor.dims) if tensor.n_dims is None else tensor.n_dims
            dims = b"".join(u64(dim) for dim in tensor.dims)
            infos.append(text(tensor.name) + u32(n_dims) + dims + u32(tensor.type) + u64(place))
            end = offset + tensor.size()
            offset = -(-end // self.alignment) * self.alignment
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kvs = len(self.kvs) if self.n_kvs is None else self.n_kvs
        counts = self.magic + u32(self.version) + u64(n_tensors) + u64(n_kvs)
        header = counts + b"".join(self.kvs) + b"".join(infos)
        self.header_size = len(header)
        if self.tensors:
            header += bytes(-len(header) % self.alignment)
        if self.data is not None:
            return header + self.data + self.tail
        nbytes = (offset if self.pad_end else end) if self.tensors else 0
        return header + bytes(i % 251 for i in range(nbytes)) + self.tail


def rich_file() -> File:
    """About forty keys and tensors: every value type, several tensor types, small enough to mutate fast."""
    kvs = [
        kv("general.architecture", STRING, "llama"),
        kv("general.name", STRING, "räksmörgås 🦐"),
        kv("general.alignment", U32, 32),
        kv("llama.block_count", U32, 4),
        kv("llama.context_length", U64, 2**40),
        kv("llama.rope.freq_base", F32, 10000.0),
        kv("a.u8", U8, 255),
        kv("a.i8", I8, -128),
        kv("a.u16", U16, 65535),
        kv("a.i16", I16, -32768),
        kv("a.i32", I32, -(2**31)),
        kv("a.i64", I64, -(2**63)),
        kv("a.f64", F64, -1.5e300),
        kv("a.true", BOOL, 1),
        kv("a.false", BOOL, 0),
        kv("a.empty", STRING, ""),
        kv_array("b.tokens", STRING, ["<s>", "", "▁the", b"\xff\xfe", "é"]),
        kv_array("b.none", STRING, []),
        kv_array("b.scores", F32, [0.0, -1.0, 2.5]),
        kv_array("b.types", I32, [1, 2, -3]),
        kv_array("b.bytes", U8, [1, 2, 3]),
        kv_array("b.big", U64, [2**64 - 1, 0]),
        kv_array("b.doubles", F64, [0.5]),
        kv_array("b.flags", BOOL, [1, 0, 1]),
        kv_array("b.nothing", I16, []),
        kv("tokenizer.chat_template", STRING, "{{ messages }}" * 8),
    ]
    tensors = [T("token_embd.weight", [32, 7], TYPE_Q8_0), T("output_norm.weight", [9])]
    for i in range(4):
        tensors += [
            T(f"blk.{i}.attn_q.weight", [32, 3], TYPE_Q4_0),
            T(f"blk.{i}.attn_norm.weight", [5], TYPE_F32),
            T(f"blk.{i}.ffn.weight", [3, 2, 2], TYPE_F16),
        ]
    tensors += [T("empty.weight", [0, 5]), T("four.weight", [2, 1, 3, 1]), T("k.weight", [256], TYPE_Q4_K)]
    return File(kvs, tensors)
