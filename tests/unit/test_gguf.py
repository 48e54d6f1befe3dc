"""What a well-formed GGUF file gives: values, views, shards; and files that are no files."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.limits import soon
from tests.tiny import tiny
from tests.unit.gguf_builder import (
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    TYPE_F16,
    TYPE_Q8_0,
    U8,
    U16,
    U32,
    U64,
    File,
    T,
    kv,
    kv_array,
    rich_file,
    u64,
)
from wgllm.errors import ModelFileError, ModelNotFoundError
from wgllm.formats import gguf as reader
from wgllm.formats.gguf import open_gguf
from wgllm.formats.gguf_metadata import StringArray
from wgllm.formats.model_file import ModelFile
from wgllm.quant import format_by_name

TINY = Path(__file__).parents[1] / "data" / "tiny"


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Writes a file, opens it, closes it in the end."""
    models: list[ModelFile] = []

    def open_file(file: File | bytes, name: str = "model.gguf") -> ModelFile:
        path = tmp_path / name
        path.write_bytes(file if isinstance(file, bytes) else file.build())
        models.append(open_gguf(path))
        return models[-1]

    yield open_file
    for model in models:
        model.close()


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_open(opened: Any, version: int) -> None:
    model = opened(File([kv("a", U32, 7)], [T("w", [4])], version=version))
    assert model.metadata["a"] == 7
    assert list(model.tensors) == ["w"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (U8, 255),
        (I8, -128),
        (U16, 65535),
        (I16, -32768),
        (U32, 2**32 - 1),
        (I32, -(2**31)),
        (U64, 2**64 - 1),
        (I64, -(2**63)),
        (F32, 0.5),
        (F64, 1e300),
        (STRING, "räksmörgås"),
        (STRING, ""),
    ],
)
def test_scalar_types(opened: Any, kind: int, value: Any) -> None:
    got = opened(File([kv("key", kind, value)])).metadata["key"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(("byte", "value"), [(0, False), (1, True), (0xB7, True)])
def test_any_byte_but_zero_is_true(opened: Any, byte: int, value: bool) -> None:
    metadata = opened(File([kv("key", BOOL, byte), kv_array("array", BOOL, [byte, 0])])).metadata
    assert metadata["key"] is value
    assert metadata["array"].tolist() == [value, False]
    assert metadata["array"].dtype == np.bool_


@pytest.mark.parametrize(
    ("kind", "dtype", "values"),
    [
        (U8, "u1", [0, 255]),
        (I8, "i1", [-128, 127]),
        (U16, "u2", [0, 65535]),
        (I16, "i2", [-32768]),
        (U32, "u4", [2**32 - 1]),
        (I32, "i4", [-1, 2]),
        (U64, "u8", [2**64 - 1]),
        (I64, "i8", [-(2**63)]),
        (F32, "f4", [0.5, -0.25]),
        (F64, "f8", [1e300]),
        (I32, "i4", []),
    ],
)
def test_arrays_of_numbers_are_views(opened: Any, kind: int, dtype: str, values: list[Any]) -> None:
    array = opened(File([kv_array("key", kind, values)])).metadata["key"]
    assert array.dtype == np.dtype(dtype)
    assert array.tolist() == values
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_strings_are_decoded_when_read(opened: Any) -> None:
    tokens = ["<s>", "", "▁the", "🦐"]
    model = opened(File([kv_array("tokens", STRING, tokens), kv_array("none", STRING, []), kv("z", U8, 1)]))
    array = model.metadata["tokens"]
    assert isinstance(array, StringArray)
    assert len(array) == 4
    assert array.tolist() == list(array) == tokens
    assert array.bytes_list() == [token.encode() for token in tokens]
    assert [array[0], array[-1], array[np.int64(2)]] == ["<s>", "🦐", "▁the"]
    assert array[1:3] == ["", "▁the"]
    assert array[::-2] == tokens[::-2]
    assert array[3:1] == []
    assert "▁the" in array
    assert array.index("🦐") == 3
    with pytest.raises(IndexError):
        array[4]
    assert model.metadata["none"].tolist() == []
    assert list(model.metadata) == ["tokens", "none", "z"]


def test_long_string_arrays_iterate_in_blocks(opened: Any) -> None:
    tokens = [f"t{i}" for i in range(40_000)]
    array = opened(File([kv_array("tokens", STRING, tokens)])).metadata["tokens"]
    assert list(array) == array.tolist() == tokens


def test_a_token_that_is_not_utf8_opens_and_is_named_when_read(opened: Any) -> None:
    model = opened(File([kv_array("tokens", STRING, ["a", "b", b"\xff\xfe"])]))
    array = model.metadata["tokens"]
    assert array.bytes_list() == [b"a", b"b", b"\xff\xfe"]
    assert array[:2] == ["a", "b"]
    for read in (array.tolist, lambda: array[2], lambda: array[-1], lambda: list(array)):
        with pytest.raises(ModelFileError, match=r"model\.gguf: tokens\[2\]: is not UTF-8"):
            read()


def test_a_text_that_is_not_utf8_opens_and_is_named_when_read(opened: Any) -> None:
    model = opened(File([kv("bad", STRING, b"\xff"), kv("good", STRING, "x")]))
    assert model.metadata["good"] == "x"
    assert "bad" in model.metadata
    with pytest.raises(ModelFileError, match=r"model\.gguf: bad: is not UTF-8"):
        model.metadata["bad"]


def test_tensors_are_read_only_views_of_the_map(opened: Any) -> None:
    file = File(tensors=[T("q", [64, 3], TYPE_Q8_0), T("w", [5])])
    raw = file.build()
    model = opened(file)
    q, w = model.tensors["q"], model.tensors["w"]
    assert (q.shape, q.format, q.nbytes) == ((3, 64), format_by_name("Q8_0"), 3 * 2 * 34)
    assert (w.shape, w.format, w.nbytes) == ((5,), format_by_name("F32"), 20)
    start = -(-file.header_size // 32) * 32
    assert q.data.tobytes() == raw[start : start + 204]
    assert w.data.tobytes() == raw[start + 224 : start + 244]
    whole = q.data.base
    assert isinstance(_owner(whole), mmap.mmap)
    for tensor in (q, w):
        assert tensor.data.dtype == np.uint8
        assert not tensor.data.flags.writeable
        assert np.shares_memory(tensor.data, whole)
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            tensor.data.flags.writeable = True


def _owner(array: Any) -> Any:
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


@pytest.mark.parametrize("dims", [[], [4], [4, 3], [4, 3, 2], [4, 3, 2, 5]])
def test_dimensions_are_reversed(opened: Any, dims: list[int]) -> None:
    tensor = opened(File(tensors=[T("w", dims)])).tensors["w"]
    assert tensor.shape == (tuple(reversed(dims)) or (1,))
    assert tensor.nbytes == 4 * tensor.size


@pytest.mark.parametrize(
    "file",
    [
        File(),
        File([kv("general.architecture", STRING, "llama")]),
        File([kv(f"random.{i}.ключ", kind, 1) for i, kind in enumerate([U8, I16, F64] * 20)]),
        File(tensors=[T("w", [32, 0]), T("v", [4]), T("u", [0], TYPE_Q8_0), T("t", [0, 3], TYPE_Q8_0)]),
        File(tensors=[T("w", [0])]),
        File([kv("general.alignment", U32, 1)], [T("w", [3]), T("v", [5], TYPE_F16)], alignment=1),
        File([kv("general.alignment", U32, 4096)], [T("w", [3]), T("v", [5])], alignment=4096),
        File(tensors=[T("w", [3])], pad_end=False),
        File(tensors=[T("w", [3])], tail=b"\0" * 100),
        File(tensors=[T("w", [8], offset=32), T("v", [8], offset=0)]),
        File(tensors=[T("w", [8], offset=64), T("v", [8], offset=0)], data=bytes(96)),
        rich_file(),
    ],
    ids=[
        *("nothing", "no-tensors", "random-keys", "zero-size", "only-zero-size", "align-1", "align-4096"),
        *("unpadded-end", "trailing", "any-order", "gaps", "rich"),
    ],
)
def test_must_load(opened: Any, file: File) -> None:
    model = opened(file)
    assert [tensor.name for tensor in file.tensors] == list(model.tensors)
    for expected, tensor in zip(file.tensors, model.tensors.values(), strict=True):
        assert tensor.nbytes == expected.size()
        assert tensor.rows().shape == (tensor.n_rows, tensor.shape[-1])


@pytest.mark.parametrize(
    ("architecture", "interleaved"),
    [(name, True) for name in ("llama", "granite", "command-r", "olmo", "smollm3", "deepseek2")]
    + [(name, False) for name in ("qwen2", "gemma3", "phi3", "stablelm", "olmo2", "nonsense")],
)
def test_conventions(opened: Any, architecture: str, interleaved: bool) -> None:
    model = opened(File([kv("general.architecture", STRING, architecture)]))
    assert model.architecture == architecture
    assert model.conventions.rope_interleaved is interleaved
    assert model.conventions.norm_offset == 0.0


def test_an_architecture_of_another_type_is_none(opened: Any) -> None:
    assert opened(File([kv_array("general.architecture", U32, [1])])).architecture == ""


def test_equals_the_reference_reader() -> None:
    gguf = pytest.importorskip("gguf")
    path = TINY / "llama-tied" / "llama-tied.q8_0.gguf"
    theirs = gguf.GGUFReader(path)
    with open_gguf(path) as ours:
        fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
        assert list(ours.metadata) == list(fields)
        for key, field in fields.items():
            value = ours.metadata[key]
            value = value.tolist() if isinstance(value, (StringArray, np.ndarray)) else value
            assert value == field.contents(), key
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            mine = ours.tensors[tensor.name]
            assert mine.shape == tuple(reversed(tensor.shape.tolist()))
            assert mine.format.name == tensor.tensor_type.name
            assert mine.data.tobytes() == tensor.data.tobytes()
        assert ours.architecture == "llama"
        assert ours.conventions.rope_interleaved


def test_writes_of_the_gguf_package_open(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_custom_alignment(64)
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("words", ["a", "b"])
    writer.add_bool("flag", True)
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("w", weights)
    writer.add_tensor("h", weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as model:
        assert model.metadata["general.alignment"] == 64
        assert model.metadata["numbers"].tolist() == [1, 2, 3]
        assert model.metadata["words"].tolist() == ["a", "b"]
        assert model.metadata["flag"] is True
        assert model.tensors["w"].shape == (3, 4)
        assert np.array_equal(model.tensors["w"].array(), weights)
        assert np.array_equal(model.tensors["h"].array(), weights)
        assert not model.conventions.rope_interleaved


@pytest.mark.parametrize("path", sorted(TINY.glob("*/*.gguf")), ids=lambda path: path.name)
def test_every_tiny_model_opens(path: Path) -> None:
    with open_gguf(path) as model:
        assert model.architecture
        assert "token_embd.weight" in model.tensors
        tokens = model.metadata["tokenizer.ggml.tokens"]
        assert len(tokens) == len(tokens.bytes_list()) == model.tensors["token_embd.weight"].shape[0]


@pytest.mark.skipif(sys.platform == "win32", reason="would write all of it")
def test_opening_reads_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    header = File(tensors=[T("w", [2**36], nbytes=0)]).build()
    path.write_bytes(header)
    os.truncate(path, len(header) + 2**38)
    with soon(), open_gguf(path) as model:
        assert model.tensors["w"].nbytes == 2**38


# --- closing -----------------------------------------------------------------------------------------


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[mmap.mmap]:
    """The maps that the reader makes."""
    made: list[mmap.mmap] = []

    def record(path: Path, kind: str, real: Any = reader.map_file) -> mmap.mmap:
        made.append(real(path, kind))
        return made[-1]

    monkeypatch.setattr(reader, "map_file", record)
    return made


def test_close_closes_the_map(opened: Any, maps: list[mmap.mmap]) -> None:
    model = opened(rich_file())
    model.metadata["b.tokens"].bytes_list()
    model.close()
    assert [mapped.closed for mapped in maps] == [True]
    assert len(model.tensors) == len(model.metadata) == 0
    model.close()


def test_an_array_outlives_close(opened: Any, maps: list[mmap.mmap]) -> None:
    model = opened(File(tensors=[T("w", [8])]))
    data = model.tensors["w"].data
    expected = data.tobytes()
    model.close()
    assert data.tobytes() == expected
    assert not maps[0].closed


def test_a_refused_file_is_not_kept_mapped(opened: Any, maps: list[mmap.mmap]) -> None:
    file = rich_file()
    with pytest.raises(ModelFileError):
        opened(file.build()[:-300])
    assert [mapped.closed for mapped in maps] == [True]


# --- shards ------------------------------------------------------------------------------------------


def shard(no: int, count: int, tensors: list[T], total: int, *more: bytes) -> File:
    kvs = [kv("split.no", U16, no), kv("split.count", U16, count), kv("split.tensors.count", I32, total)]
    return File([*more, *kvs], tensors)


def write_shards(folder: Path, files: list[File], name: str = "m-{:05}-of-{:05}.gguf") -> Path:
    for i, file in enumerate(files):
        (folder / name.format(i + 1, len(files))).write_bytes(file.build())
    return folder / name.format(1, len(files))


def three() -> list[File]:
    return [
        shard(0, 3, [], 3, kv("general.architecture", STRING, "llama")),
        shard(1, 3, [T("a", [4]), T("b", [8])], 3),
        shard(2, 3, [T("c", [2])], 3),
    ]


def test_shards_are_joined(tmp_path: Path, maps: list[mmap.mmap]) -> None:
    with open_gguf(write_shards(tmp_path, three())) as model:
        assert list(model.tensors) == ["a", "b", "c"]
        assert model.architecture == "llama"
        assert model.tensors["c"].nbytes == 8
    assert [mapped.closed for mapped in maps] == [True] * 3


def test_a_file_that_is_one_shard_of_one_opens(opened: Any) -> None:
    assert list(opened(shard(0, 1, [T("a", [4])], 1)).tensors) == ["a"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = write_shards(tmp_path, three())
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(
        ModelFileError, match=r"split\.count: shard 2 of 3, m-00002-of-00003\.gguf, is missing"
    ):
        open_gguf(first)


def test_a_later_shard_names_the_first(tmp_path: Path) -> None:
    write_shards(tmp_path, three())
    with pytest.raises(ModelFileError, match=r"shard 3 of 3; open m-00001-of-00003\.gguf"):
        open_gguf(tmp_path / "m-00003-of-00003.gguf")


def _renamed(tmp_path: Path) -> Path:
    return write_shards(tmp_path, three()).rename(tmp_path / "model.gguf")


def _with(files: list[File], i: int, file: File) -> list[File]:
    files[i] = file
    return files


@pytest.mark.parametrize(
    ("files", "field", "problem"),
    [
        (_with(three(), 1, shard(2, 3, [T("a", [4]), T("b", [8])], 3)), "split.no", "is 2, not 1"),
        (_with(three(), 2, shard(2, 4, [T("c", [2])], 3)), "split.count", "is 4, not 3"),
        (_with(three(), 2, shard(2, 3, [T("c", [2])], 9)), "split.tensors.count", "is 9, not 3"),
        (_with(three(), 2, shard(2, 3, [], 3)), "split.tensors.count", "is 3, but the shards have 2"),
        (_with(three(), 2, shard(2, 3, [T("a", [2])], 3)), "tensor a", "an earlier shard"),
        (_with(three(), 1, File(tensors=[T("a", [4])])), "split.no", "is missing"),
        (_with(three(), 0, shard(0, 2, [], 3)), "split.count", "NAME-00001-of-00002.gguf"),
        (_with(three(), 0, File([kv("split.count", STRING, "3")])), "split.count", "not a number"),
        (_with(three(), 0, File([kv("split.count", BOOL, 1)])), "split.count", "not a number"),
        (_with(three(), 0, File([kv_array("split.count", U16, [3])])), "split.count", "not a number"),
        (_with(three(), 0, File([kv("split.count", I32, -3)])), "split.count", "not a number"),
        (_with(three(), 0, File([kv("split.no", U16, 1)])), "split.no", "open m-00001-of-00003.gguf"),
    ],
)
def test_shards_that_do_not_fit_are_refused(
    tmp_path: Path, maps: list[mmap.mmap], files: list[File], field: str, problem: str
) -> None:
    first = write_shards(tmp_path, files)
    with pytest.raises(ModelFileError) as caught:
        open_gguf(first)
    assert caught.value.field == field
    assert problem in str(caught.value)
    assert all(mapped.closed for mapped in maps)


def test_a_renamed_first_shard_says_what_its_name_must_be(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"model\.gguf: split\.count: .*NAME-00001-of-00003\.gguf"):
        open_gguf(_renamed(tmp_path))


# --- no file -----------------------------------------------------------------------------------------


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "no.gguf", tmp_path / "no" / "model.gguf"):
        with pytest.raises(ModelNotFoundError, match=r"\.gguf") as caught:
            open_gguf(str(path))
        assert caught.value.exit_code == 3


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a directory"):
        open_gguf(tmp_path)


def test_an_empty_file_is_refused(opened: Any) -> None:
    with pytest.raises(ModelFileError, match=r"model\.gguf: file: the file is empty"):
        opened(b"")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    with pytest.raises(ModelFileError, match="not a regular file"):
        open_gguf(path)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(rich_file().build())

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(
        ModelFileError, match=r"secret\.gguf: file: cannot be read: Permission denied"
    ) as caught:
        open_gguf(path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04", "zip"),
        (b"tjgg\x03\x00\x00\x00", "came before GGUF"),
        (u64(20) + b'{"a":{}}', "safetensors"),
        (b"FUGG", "not a GGUF file"),
    ],
)
def test_other_formats_are_called_by_their_names(opened: Any, start: bytes, problem: str) -> None:
    with pytest.raises(ModelFileError, match=problem):
        opened(start + bytes(64))


def test_a_tensor_that_is_forgotten_is_read_again() -> None:
    with open_gguf(tiny("llama-tied.f32").path) as file:
        for view in file.tensors.values():
            before = view.array()
            view.forget()
            assert np.array_equal(view.array(), before)
        last = view
    last.forget()  # of a closed file nothing is left to do
