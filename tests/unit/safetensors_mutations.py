"""Damaged safetensors headers beside the ``safetensors`` package: nothing may be accepted that it reads otherwise.

``python -m tests.unit.safetensors_mutations 10000`` tries that many and counts.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from wgllm.errors import ModelFileError
from wgllm.formats.safetensors import parse_header

TOKENS = [
    b'"F32"', b'"F16"', b'"BF16"', b'"F64"', b'"I8"', b'"F4"', b'"F8_E4M3"', b'"dtype"', b'"shape"',
    b'"data_offsets"', b'"__metadata__"', b"null", b"true", b"NaN", b"Infinity", b"-1", b"-0", b"0", b"1", b"1.0",
    b"1e3", b"4294967296", b"9223372036854775808", b"18446744073709551616", b"340282366920938463463374607431768211457",
    b"[]", b"{}", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b'"\\ud800"', b"\xff", b"\x00", b" ", b"\t", b"01",
]  # fmt: skip


def sample() -> bytes:
    """A small file with tensors of several dtypes, one of them empty."""
    data = bytes(range(96))
    header = {
        "__metadata__": {"format": "pt"},
        "model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": [2, 8], "data_offsets": [16, 48]},
        "empty": {"dtype": "F16", "shape": [0, 3], "data_offsets": [48, 48]},
        "scalar": {"dtype": "F64", "shape": [], "data_offsets": [48, 56]},
        "lm_head.weight": {"dtype": "F16", "shape": [4, 5], "data_offsets": [56, 96]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """One to three changes each: bytes, bits, numbers, JSON's own words, lengths, ends."""
    rng = random.Random(seed)
    whole = sample()
    n = struct.unpack_from("<Q", whole)[0]
    for _ in range(count):
        head, text, rest = whole[:8], bytearray(whole[8 : 8 + n]), whole[8 + n :]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            at, kind = rng.randrange(len(text)), rng.randrange(8)
            if kind == 0:
                text[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                text[at] = rng.randrange(256)
            elif kind == 2:
                del text[at : at + rng.choice((1, 1, 2, 8))]
            elif kind == 3:
                text[at:at] = rng.choice(TOKENS)
            elif kind == 4:
                word = rng.choice(TOKENS)
                text[at : at + len(word)] = word
            elif kind == 5:  # one digit for another
                digits = [i for i, c in enumerate(text) if 0x30 <= c <= 0x39]
                text[rng.choice(digits) if digits else at] = rng.randrange(0x30, 0x3A)
            elif kind == 6:  # a piece of the header once more
                text[at:at] = text[(b := rng.randrange(len(text))) : b + rng.randrange(60)]
            else:
                head = struct.pack(
                    "<Q", max(0, n + rng.choice((-8, -1, 1, 8, 1 << 20, 1 << 40, (1 << 63) - n)))
                )
        if head == whole[:8] and rng.random() < 0.9:  # else the length does not fit the header any more
            head = struct.pack("<Q", len(text))
        made = head + bytes(text) + rest
        yield made[: rng.randrange(len(made))] if rng.random() < 0.03 else made


def ours(data: bytes) -> dict[str, Any] | None:
    """Tensors as (dtype, shape, bytes), None when refused. Anything but a ModelFileError is a crash."""
    try:
        entries = parse_header(memoryview(data), Path("x.safetensors"))
    except ModelFileError as error:
        assert "\n" not in str(error)
        return None
    return {name: (dtype, shape, data[a:b]) for name, dtype, shape, a, b in entries}


def theirs(data: bytes) -> dict[str, Any] | None:
    try:
        found = safetensors.deserialize(data)
    except Exception:
        return None
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in found}


def judge(data: bytes) -> str:
    """``accepted``, ``refused``, ``refused here only``; raises AssertionError for what is accepted wrongly."""
    a, b = ours(data), theirs(data)
    if a is None:
        return "refused" if b is None else "refused here only"
    assert a == b, f"accepted wrongly: {data!r}"
    return "accepted"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    results: Counter[str] = Counter()
    slowest = 0.0
    for data in mutations(count, seed=int(np.random.default_rng().integers(1 << 31))):
        start = time.perf_counter()
        ours(data)
        slowest = max(slowest, time.perf_counter() - start)
        results[judge(data)] += 1
    print(f"{count} tried, {dict(results)}, the slowest took {1e3 * slowest:.1f} ms")


if __name__ == "__main__":
    main()
