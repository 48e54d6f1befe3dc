"""Malformed GGUF files: each is refused by name, none crashes, hangs, fills the memory or slips through."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.limits import LONGEST, soon
from tests.unit.gguf_builder import (
    ARRAY,
    I32,
    STRING,
    TYPE_Q4_K,
    TYPE_Q8_0,
    U8,
    U32,
    U64,
    File,
    T,
    kv,
    kv_array,
    rich_file,
    text,
    u32,
    u64,
)
from tests.unit.gguf_oracle import Oracle
from wgllm.errors import ModelFileError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.gguf_header import parse_header
from wgllm.formats.gguf_metadata import StringArray

TINY = Path(__file__).parents[1] / "data" / "tiny" / "llama-tied" / "llama-tied.q8_0.gguf"
SEED = 20240
N_MUTATIONS = 10_000


def having(*tensors: T) -> File:
    return File(tensors=tensors)


def entry(key: str, rest: bytes) -> bytes:
    return text(key) + rest


# id: (file, the field it must name, words of the problem)
MALFORMED: dict[str, tuple[File | bytes, str, str]] = {
    "magic": (File(magic=b"GGML"), "header", "not a GGUF file"),
    "magic-short": (b"GG", "header", "not a GGUF file"),
    "header-short": (b"GGUF\3\0\0\0\0\0", "header", "ends inside the header"),
    "version-0": (File(version=0), "header", "version 0 does not exist"),
    "version-1": (File(version=1), "header", "version 1 is no longer read"),
    "version-4": (File(version=4), "header", "version 4 is newer"),
    "version-1-short": (b"GGUF\1\0\0\0\0\0\0\0", "header", "version 1 is no longer read"),
    "version-negative": (File(version=-1), "header", "version 4294967295"),
    "big-endian": (File(version=3 << 24), "header", "big-endian"),
    "tensors-negative": (File(n_tensors=-1), "header", "number of tensors is negative (-1)"),
    "tensors-min-int64": (File(n_tensors=2**63), "header", "number of tensors is negative"),
    "tensors-too-many": (File(n_tensors=2**62), "header", "tensors cannot fit"),
    "keys-negative": (File(n_kvs=-1), "header", "number of metadata keys is negative (-1)"),
    "keys-too-many": (File(n_kvs=2**40), "header", "metadata keys cannot fit"),
    "keys-one-more": (
        File([kv("a", STRING, "x" * 40)], n_kvs=2),
        "metadata key 2 of 2",
        "ends inside the length of the key",
    ),
    "key-length-minus-1": (File([u64(-1) + bytes(40)]), "metadata key 1 of 1", "the key has -1 bytes"),
    "key-length-beyond": (File([u64(100) + bytes(40)]), "metadata key 1 of 1", "ends inside the key"),
    "key-too-long": (File([kv("k" * 65536, U8, 1)]), "metadata key 1 of 1", "the key has 65536 bytes"),
    "key-empty": (File([kv("", U64, 1)]), "metadata key 1 of 1", "the key is empty"),
    "key-twice": (File([kv("same", U8, 1), kv("same", U32, 2)]), "same", "occurs twice"),
    "key-not-utf8": (File([kv(b"\xff\xfe", U8, 1)]), "metadata key 1 of 1", "not UTF-8"),
    "value-type": (File([entry("k", u32(13) + bytes(8))]), "k", "unknown value type 13"),
    "value-type-negative": (File([entry("k", u32(-1) + bytes(8))]), "k", "unknown value type 4294967295"),
    "value-short": (File([entry("key", u32(U64) + bytes(4))]), "key", "ends inside the value"),
    "string-minus-1": (File([entry("k", u32(STRING) + u64(-1))]), "k", "a string of -1 bytes"),
    "string-above-1-gi": (File([entry("k", u32(STRING) + u64(2**30 + 1))]), "k", "1073741824 are allowed"),
    "string-beyond": (File([entry("k", u32(STRING) + u64(2**30))]), "k", "ends inside the string"),
    "architecture-long": (
        File([kv("general.architecture", STRING, "a" * 999)]),
        "general.architecture",
        "999 bytes",
    ),
    "array-type": (
        File([entry("k", u32(ARRAY) + u32(99) + u64(1) + bytes(8))]),
        "k",
        "unknown value type 99",
    ),
    "array-nested": (
        File([entry("k", u32(ARRAY) + u32(ARRAY) + u64(1) + u32(U8) + u64(1) + b"\1")]),
        "k",
        "arrays of arrays",
    ),
    "array-length-minus-1": (File([kv_array("k", U8, [], -1)]), "k", "an array of -1 items"),
    "array-above-1-gi": (File([kv_array("k", U8, [], 2**30 + 1)]), "k", "1073741824 are allowed"),
    "array-beyond": (File([kv_array("k", U64, [1], 2**29)]), "k", "ends inside the array"),
    "array-header-short": (File([entry("key", u32(ARRAY) + u32(U8))]), "key", "ends inside the type and"),
    "strings-beyond": (File([kv_array("k", STRING, ["x"], 2**20)]), "k", "ends inside the array"),
    "architecture-not-utf8": (
        File([kv("general.architecture", STRING, b"\xff")]),
        "general.architecture",
        "is not UTF-8",
    ),
    "strings-too-many": (File([kv_array("k", STRING, [], 2**30)]), "k", "wgllm reads at most"),
    "strings-wrap": (
        File([entry("k", u32(ARRAY) + u32(STRING) + u64(2) + u64(2**64 - 8) + bytes(8))]),
        "k",
        "string 0 of 2 has -8 bytes",
    ),
    "strings-short": (
        File([entry("k", u32(ARRAY) + u32(STRING) + u64(2) + text("12345") + b"\1\0\0")]),
        "k",
        "ends inside string 1 of 2",
    ),
    "strings-last-beyond": (
        File([entry("k", u32(ARRAY) + u32(STRING) + u64(2) + text("a") + u64(2**31))]),
        "k",
        "string 1 of 2 has 2147483648 bytes",
    ),
    "alignment-0": (File([kv("general.alignment", U32, 0)]), "general.alignment", "not a power of two"),
    "alignment-13": (File([kv("general.alignment", U32, 13)]), "general.alignment", "not a power of two"),
    "alignment-i32": (
        File([kv("general.alignment", I32, 32)]),
        "general.alignment",
        "must be a u32, not i32",
    ),
    "alignment-u64": (
        File([kv("general.alignment", U64, 32)]),
        "general.alignment",
        "must be a u32, not u64",
    ),
    "alignment-text": (File([kv("general.alignment", STRING, "32")]), "general.alignment", "not string"),
    "alignment-array": (File([kv_array("general.alignment", U32, [32])]), "general.alignment", "not array"),
    "alignment-huge": (
        File([kv("general.alignment", U32, 2**31)], [T("w", [4])]),
        "tensor w",
        "past the end of the file",
    ),
    "name-64": (having(T("n" * 64, [4])), "tensor 1 of 1", "the name has 64 bytes"),
    "name-minus-1": (
        having(T("a", [8]), T("b", [8])).build().replace(text("b"), u64(-1) + b"b"),
        "tensor 2 of 2",
        "the name has -1 bytes",
    ),
    "name-empty": (having(T("", [4])), "tensor 1 of 1", "the name is empty"),
    "name-not-utf8": (having(T(b"\xc3", [4])), "tensor 1 of 1", "the name is not UTF-8"),
    "name-twice": (having(T("w", [8]), T("w", [8])), "tensor w", "occurs twice"),
    "dims-5": (having(T("w", [1, 1, 1, 1, 1])), "tensor w", "has 5 dimensions"),
    "dims-minus-1": (having(T("w", [4], n_dims=-1)), "tensor w", "has 4294967295 dimensions"),
    "dim-negative": (having(T("w", [4, -1], nbytes=16)), "tensor w", "negative dimension (-1)"),
    "dim-min-int64": (having(T("w", [2**63], nbytes=16)), "tensor w", "negative dimension"),
    "elements-overflow": (having(T("w", [2**33, 2**33], nbytes=16)), "tensor w", "2**63 elements or more"),
    "elements-wrap-to-0": (having(T("w", [2**32, 2**32], nbytes=0)), "tensor w", "2**63 elements or more"),
    "elements-beside-0": (having(T("w", [2**40, 0, 2**40], nbytes=0)), "tensor w", "2**63 elements or more"),
    "bytes-overflow": (having(T("w", [2**31, 2**31], nbytes=16)), "tensor w", "2**63 bytes or more"),
    "bytes-wrap-to-16": (having(T("w", [2**62 + 4], nbytes=16)), "tensor w", "2**63 bytes or more"),
    "padding-wrap": (having(T("w", [2**61 - 1], nbytes=16)), "tensor w", "padded end is at 2**63 bytes"),
    "offset-plus-size": (
        having(T("w", [2**60 - 16], offset=2**62 + 32, nbytes=0)),
        "tensor w",
        "ends at byte",
    ),
    "end-wrap": (having(T("w", [2**60], offset=2**62, nbytes=0), T("v", [1])), "tensor w", "padded end"),
    "two-huge": (
        having(T("w", [2**61 - 16], nbytes=0), T("v", [2**61 - 16], nbytes=0)),
        "tensor",
        "past the end of the file",
    ),
    "type-unsupported": (having(T("w", [256], 40, nbytes=144)), "tensor w", "type NVFP4 is not supported"),
    "type-dropped": (having(T("w", [32], 4, nbytes=18)), "tensor w", "type Q4_2 is not supported"),
    "type-nonsense": (having(T("w", [32], 9999, nbytes=18)), "tensor w", "unknown tensor type 9999"),
    "type-negative": (having(T("w", [32], -1, nbytes=18)), "tensor w", "unknown tensor type 4294967295"),
    "offset-minus-1": (having(T("w", [8], offset=-1)), "tensor w", "offset is negative (-1)"),
    "offset-unaligned": (having(T("w", [8]), T("v", [8], offset=33)), "tensor v", "not a multiple"),
    "offset-of-alignment-1": (File(tensors=[T("w", [7]), T("v", [7])], alignment=1), "tensor v", "offset 28"),
    "offset-beyond": (having(T("w", [8], offset=2**40)), "tensor w", "past the end of the file"),
    "offset-of-empty": (
        having(T("v", [8]), T("w", [0], offset=4096)),
        "tensor w",
        "past the end of the file",
    ),
    "overlap": (having(T("v", [16]), T("w", [8], offset=32)), "tensor w", "overlaps tensor v"),
    "overlap-same": (having(T("v", [8]), T("w", [8], offset=0)), "tensor w", "overlaps tensor v"),
    "overlap-inside": (
        having(T("w", [8], offset=32), T("v", [64], offset=0)),
        "tensor w",
        "overlaps tensor v",
    ),
    "row-not-blocks": (
        having(T("w", [33, 32], TYPE_Q8_0, nbytes=1122)),
        "tensor w",
        "whole Q8_0 blocks of 32",
    ),
    "row-less-than-block": (having(T("w", [128, 2], TYPE_Q4_K)), "tensor w", "whole Q4_K blocks of 256"),
    "scalar-of-blocks": (having(T("w", [], TYPE_Q8_0, nbytes=34)), "tensor w", "rows of 1 numbers"),
    "one-byte-short": (File(tensors=[T("v", [8]), T("w", [8])], data=bytes(63)), "tensor w", "past the end"),
    "cut-in-padding": (having(T("w", [3])).build()[:-1], "tensor w", "cut off in the padding"),
    "no-data": (File(tensors=[T("w", [8])], data=b""), "tensor w", "past the end"),
    "tensors-short": (File(tensors=[T("w", [8])]).build()[:50], "tensor w", "ends inside the dimensions"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(tmp_path: Path, name: str) -> None:
    file, field, problem = MALFORMED[name]
    raw = file if isinstance(file, bytes) else file.build()
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with soon(), pytest.raises(ModelFileError) as caught:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    _check_message(caught.value, path)
    assert field in caught.value.field
    assert problem in str(caught.value)
    assert isinstance(Oracle(raw).judge(), str)


def _check_message(error: ModelFileError, path: Path) -> None:
    message = str(error)
    assert error.exit_code == 4
    assert message.startswith(f"{path.name}: ")
    assert error.field
    assert message.isprintable()
    assert len(message) < 1500  # an unprintable character is written with up to 8


@pytest.mark.parametrize("path", [None, TINY], ids=["rich", "tiny"])
def test_a_cut_at_every_byte_of_the_header_is_refused(path: Path | None) -> None:
    raw = rich_file().build() if path is None else path.read_bytes()
    end = Oracle(raw).header_end()
    view = memoryview(raw)
    # Thousands of cuts inside one long array of strings say the same thing: every byte of the small file,
    # and of the real one the first and the last part.
    cuts = (
        range(end + 1) if end < 4096 else [*range(2048), *range(2048, end, 37), *range(end - 1024, end + 1)]
    )
    for cut in cuts:
        with pytest.raises(ModelFileError) as caught:
            parse_header(view[:cut], Path("cut.gguf"))
        _check_message(caught.value, Path("cut.gguf"))


def test_every_cut_of_the_data_is_refused_or_harmless(tmp_path: Path) -> None:
    raw = rich_file().build()
    for cut in range(Oracle(raw).header_end(), len(raw)):
        assert _examine(raw[:cut], tmp_path / "cut.gguf") in ("refused", "accepted")


FEW_STRINGS = kv_array("k", STRING, [""] * 1000)


@pytest.mark.parametrize(
    ("file", "field"),
    [
        (File(n_tensors=2**20), "header"),
        (File(n_kvs=2**20), "header"),
        (File([kv_array("k", STRING, [], 2**22 + 1)]), "k"),
        (File([FEW_STRINGS, kv_array("l", STRING, [], 2**22)]), "l"),
    ],
    ids=["tensors", "keys", "strings", "strings-of-two"],
)
def test_counts_that_a_long_file_could_hold_are_refused(tmp_path: Path, file: File, field: str) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(file.build())
    os.truncate(path, 2**26)
    tracemalloc.start()
    try:
        with soon(), pytest.raises(ModelFileError, match="wgllm reads at most") as caught:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    _check_message(caught.value, path)
    assert caught.value.field == field


def test_as_many_strings_as_allowed_take_little(tmp_path: Path) -> None:
    """The most that a file can make the reader loop over: 4 Mi empty strings, then an error."""
    path = tmp_path / "long.gguf"
    path.write_bytes(File([kv_array("k", STRING, [], 2**22)], n_kvs=2).build())
    os.truncate(path, 2**26)
    with soon(), pytest.raises(ModelFileError, match="metadata key 2 of 2: the key is empty"):
        open_gguf(path)


def test_control_characters_of_a_file_do_not_reach_the_message(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(File([kv("\x1b[2J\n", U8, 1), kv("\x1b[2J\n", U8, 1)]).build())
    with pytest.raises(ModelFileError) as caught:
        open_gguf(path)
    _check_message(caught.value, path)


# --- mutations ---------------------------------------------------------------------------------------

BOUNDARIES = [0, 1, 2, 3, 4, 5, 9, 31, 32, 33, 63, 64, 255, 2**16, 2**30, 2**30 + 1, 2**31 - 1, 2**31]
BOUNDARIES += [2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 8, 2**64 - 1]


def test_ten_thousand_mutations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    sources = [rich_file().build(), TINY.read_bytes()]
    oracles = [Oracle(raw) for raw in sources]
    assert all(isinstance(oracle.judge(), dict) for oracle in oracles)
    outcomes: Counter[str] = Counter()
    odd: list[str] = []
    slowest = 0.0
    for i in range(N_MUTATIONS):
        which = int(i % 20 == 0)
        raw = bytearray(sources[which])
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            _mutate(rng, raw, oracles[which], sources[0])
        began = time.thread_time()
        try:
            outcome = _examine(bytes(raw), tmp_path / "mutant.gguf", on_disk=i % 10 == 0)
        except Exception as error:
            outcome, where = "crashed", f": {error!r}"
        else:
            where = ""
        slowest = max(slowest, time.thread_time() - began)
        kind = outcome.partition(":")[0]
        outcomes[kind] += 1
        if kind not in ("refused", "accepted"):
            odd.append(f"mutant {i} {outcome}{where}")
    hangs = int(slowest > LONGEST)
    with capsys.disabled():
        print(
            f"\nGGUF mutations: tried {N_MUTATIONS}, crashes {outcomes['crashed']}, hangs {hangs} "
            f"(slowest {slowest * 1e3:.0f} ms), wrongly accepted {outcomes['wrongly accepted']}, "
            f"wrongly refused {outcomes['wrongly refused']}, clear errors {outcomes['refused']}, "
            f"accepted and valid {outcomes['accepted']}"
        )
    assert not odd
    assert not hangs
    assert outcomes["refused"] > N_MUTATIONS // 2
    assert outcomes["accepted"] > N_MUTATIONS // 50


def _mutate(rng: random.Random, raw: bytearray, oracle: Oracle, other: bytes) -> None:
    """Damages ``raw`` in one of eight ways, mostly in its header."""
    end = min(oracle.header_end(), len(raw)) if rng.random() < 0.9 else len(raw)
    at = rng.randrange(max(end, 1)) if raw else 0
    kind = rng.randrange(10)
    if kind < 4:
        place, size = rng.choice(oracle.integers)
        value = rng.choice(BOUNDARIES)
        if rng.random() < 0.4:
            value = int.from_bytes(raw[place : place + size], "little") + rng.choice([-32, -1, 1, 32])
        raw[place : place + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    elif kind == 4:
        for _ in range(rng.randint(1, 8)):
            if raw:
                raw[rng.randrange(min(end, len(raw)))] ^= 1 << rng.randrange(8)
    elif kind == 5:
        raw[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == 6:
        raw[at:at] = rng.choice([bytes, rng.randbytes])(rng.choice([1, 4, 8, 32, rng.randint(1, 64)]))
    elif kind == 7:
        del raw[at : at + rng.choice([1, 4, 8, 32, rng.randint(1, 256)])]
    elif kind == 8:
        start = rng.randrange(len(other))
        piece = other[start : start + rng.randint(1, 200)]
        raw[at : at + len(piece) * rng.randint(0, 1)] = piece
    else:
        del raw[rng.randrange(len(raw) + 1) :]


def _examine(raw: bytes, path: Path, on_disk: bool = False) -> str:
    """Opens ``raw`` and compares with the oracle: 'refused', 'accepted', or 'wrongly …' and why."""
    expected = Oracle(raw).judge()
    try:
        if on_disk:
            path.write_bytes(raw)
            with open_gguf(path) as model:
                tensors = {
                    name: (tensor.shape, tensor.format.type_id, tensor.data.tobytes())
                    for name, tensor in model.tensors.items()
                }
                _read_all(model.metadata, path)
        else:
            header = parse_header(memoryview(raw), path)
            tensors = {t.name: (t.shape, t.format.type_id, raw[t.start : t.stop]) for t in header.tensors}
            _read_all(header.metadata, path)
    except ModelFileError as error:
        _check_message(error, path)
        return "refused" if isinstance(expected, str) else f"wrongly refused: {error}"
    if isinstance(expected, str):
        return f"wrongly accepted: {expected}"
    return "accepted" if tensors == expected else "wrongly accepted: other tensors"


def _read_all(metadata: Mapping[str, Any], path: Path) -> None:
    for key in metadata:
        try:
            value = metadata[key]
            if isinstance(value, StringArray):
                assert len(value.bytes_list()) == len(value)
            if isinstance(value, (StringArray, np.ndarray)):
                value.tolist()
        except ModelFileError as error:
            _check_message(error, path)
            assert "UTF-8" in error.problem
