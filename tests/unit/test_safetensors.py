"""Reading safetensors: files, indices of shards, and what hostile ones may not do."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.limits import soon
from tests.unit.safetensors_mutations import judge, mutations, sample
from wgllm.errors import ModelFileError, ModelNotFoundError
from wgllm.formats.safetensors import find_weights, open_weights
from wgllm.models.opening import open_model

EIGHT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def refusal(path: Path, data: bytes) -> str:
    """What opening says; a clear error, soon."""
    path.write_bytes(data)
    with soon(), pytest.raises(ModelFileError) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 4
    assert str(caught.value).startswith(f"{path.name}: ")
    return str(caught.value)


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "np"})
    weights = open_weights(path)
    assert set(weights.tensors) == set(arrays)
    for name, array in arrays.items():
        view = weights.tensors[name].view()
        assert view.shape == array.shape and view.format.name == {"f": "F32", "e": "F16"}[array.dtype.char]
        assert not view.data.flags.writeable and not view.data.flags.owndata
        assert np.array_equal(view.array(), array.astype(np.float32))
    del view
    weights.close()
    assert [m.closed for m in weights.maps] == [True] and not weights.tensors


def test_tensors_need_not_be_aligned(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    values = np.array([1.5, -2.5], np.float32)
    text = json.dumps({"w": EIGHT}).encode()
    for padding in range(8):
        path.write_bytes(raw(text + b" " * padding, values.tobytes()))
        assert open_weights(path).tensors["w"].view().array().tolist() == [1.5, -2.5]


MALFORMED: dict[str, tuple[bytes, str]] = {
    "shorter than a length": (b"\x01\x02", "2 bytes, too few"),
    "header over 100 MB": (raw({}, length=100_000_001), "at most 100000000 are allowed"),
    "length past the end": (raw({}, length=99), "more than the file"),
    "length of 2^64 - 1": (raw({}, length=(1 << 64) - 1), "at most 100000000"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not UTF-8"),
    "not JSON": (raw(b"{nonsense}"), "not JSON"),
    "no object": (raw(b"[1]"), "does not begin with {"),
    "a key twice": (raw(b'{"a": {"dtype":"F32"}, "a": 1}'), "the key 'a' twice"),
    "a key twice in a tensor": (
        raw(b'{"a": {"dtype":"F32","shape":[2],"shape":[1,2],"data_offsets":[0,8]}}', b"x" * 8),
        "the key 'shape' twice",
    ),
    "a hole": (raw({"a": EIGHT, "b": EIGHT | {"data_offsets": [9, 17]}}, b"x" * 17), "leaves a hole"),
    "a hole at the start": (raw({"b": EIGHT | {"data_offsets": [4, 12]}}, b"x" * 12), "leaves a hole"),
    "an overlap": (raw({"a": EIGHT, "b": EIGHT | {"data_offsets": [4, 12]}}, b"x" * 12), "overlaps"),
    "the same bytes twice": (raw({"a": EIGHT, "b": EIGHT}, b"x" * 8), "overlaps"),
    "shape and dtype are not the bytes": (raw({"a": EIGHT | {"shape": [3]}}, b"x" * 8), "takes 8 bytes, but F32"),
    "elements overflow": (raw({"a": EIGHT | {"shape": [1 << 62, 4]}}, b"x" * 8), "2**63 bits"),
    "elements overflow beside a 0": (raw({"a": EIGHT | {"shape": [1 << 62, 4, 0]}}, b"x" * 8), "2**63 bits"),
    "offsets past 2^63": (raw({"a": EIGHT | {"data_offsets": [0, 1 << 63]}}, b"x" * 8), "make no sense"),
    "offsets turned round": (raw({"a": EIGHT | {"data_offsets": [8, 0]}}, b"x" * 8), "make no sense"),
    "trailing bytes": (raw({"a": EIGHT}, b"x" * 9), "1 bytes follow the last tensor"),
    "one byte short": (raw({"a": EIGHT}, b"x" * 7), "past the end of the file"),
    "unknown dtype": (raw({"a": EIGHT | {"dtype": "F33"}}, b"x" * 8), "unknown dtype 'F33'"),
    "dtype of another type": (raw({"a": EIGHT | {"dtype": [1]}}, b"x" * 8), "unknown dtype"),
    "no dtype": (raw({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"x" * 8), "has no dtype"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"x" * 8), "not a list of sizes"),
    "three offsets": (raw({"a": EIGHT | {"data_offsets": [0, 4, 8]}}, b"x" * 8), "not two places"),
    "a negative size": (raw({"a": EIGHT | {"shape": [-2, -1]}}, b"x" * 8), "negative number -2"),
    "minus zero": (raw(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), "negative number -0"),
    "true as a size": (raw({"a": EIGHT | {"shape": [True, 2]}}, b"x" * 8), "not a list of sizes"),
    "a size of 2.0": (raw(b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', b"x" * 8), "number 2.0"),
    "NaN": (raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', b"x" * 8), "has NaN"),
    "a number of 5000 digits": (raw(b'{"a":{"shape":[%s]}}' % (b"9" * 5000)), "far too large"),
    "half of a surrogate pair": (raw(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "surrogate"),
    "17 dimensions": (raw({"a": EIGHT | {"shape": [1] * 16 + [2]}}, b"x" * 8), "17 dimensions"),
    "metadata that are no texts": (raw({"__metadata__": {"a": 1}}), "map texts to texts"),
    "nested 100,000 deep": (raw(b'{"a":' + b"[" * 100_000), "not JSON"),
    "millions of lists": (raw(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"), "too many items"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "a web page": (b"<!doctype html><html>", "web page"),
    "a zip archive": (b"PK\x03\x04" + b"x" * 60, "zip archive"),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\xff" * 60, "GGUF"),
    "empty": (b"", "the file is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(tmp_path: Path, name: str) -> None:
    data, words = MALFORMED[name]
    assert words in refusal(tmp_path / "model.safetensors", data)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = sample()
    for n in range(len(whole)):
        assert judge(whole[:n]) == "refused"
    assert judge(whole) == "accepted"


@pytest.mark.parametrize("seed", range(4))
def test_what_is_accepted_of_damaged_headers_is_what_the_library_reads(seed: int) -> None:
    counts = Counter(judge(data) for data in mutations(200, seed))
    assert counts["refused"] > 100 and counts["accepted"] > 3


def test_types_are_refused_by_name_when_they_are_used(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for dtype, shape in (("F64", [1]), ("I8", [8]), ("F8_E4M3", [8]), ("U64", [1]), ("F4", [16])):
        path.write_bytes(raw({"w": EIGHT | {"dtype": dtype, "shape": shape}}, b"x" * 8))
        tensor = open_weights(path).tensors["w"]  # it may not be needed
        with pytest.raises(ModelFileError, match=f"tensor w: its type {dtype} is not supported"):
            tensor.view()


# Shards


def shards(folder: Path, **changes: Any) -> Path:
    """Two shards and their index; ``changes`` go into its weight_map."""
    for i, name in enumerate("ab", 1):
        safetensors.numpy.save_file(
            {name: np.full(3, i, np.float32)}, folder / f"model-0000{i}-of-00002.safetensors"
        )
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"} | changes
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 2.4e1}, "weight_map": weight_map}))
    return index


def test_shards_are_joined(tmp_path: Path) -> None:
    weights = open_weights(shards(tmp_path))
    assert {n: t.view().array().tolist() for n, t in weights.tensors.items()} == {
        "a": [1.0] * 3,
        "b": [2.0] * 3,
    }
    assert find_weights(tmp_path) == weights.path


HOSTILE_NAMES = [
    "../model-00002-of-00002.safetensors",
    "sub/../../model.safetensors",
    "/etc/passwd",
    "/tmp/x.safetensors",
    "C:\\x.safetensors",
    "..\\x.safetensors",
    "\\\\server\\share\\x.safetensors",
    "x.safetensors\0.txt",
    "..",
    ".hidden.safetensors",
    "",
    "con:x.safetensors",
    "a\nb.safetensors",
    "\u202ex.safetensors",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match="is not the name of a file in the same directory") as caught:
        open_weights(shards(tmp_path, b=name))
    assert "weight_map: b" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"b": "model-00003-of-00002.safetensors"}, "the shard model-00003-of-00002.safetensors is missing"),
        ({"b": "model-00001-of-00002.safetensors"}, "b: is not in model-00001"),
        ({"a": "model-00002-of-00002.safetensors"}, "a: is not in model-00002"),
        ({"c": "model-00002-of-00002.safetensors"}, "c: is not in model-00002"),
        (
            {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
            "the index says",
        ),
        ({"b": 7}, "b: is not the name of a file"),
        ({"b": "weights.txt"}, "not a safetensors file"),
        ({"b": "pytorch_model-00002-of-00002.bin"}, "pickle"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        open_weights(shards(tmp_path, **changes))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    index = shards(tmp_path)
    safetensors.numpy.save_file(
        {name: np.zeros(3, np.float32) for name in "ab"}, tmp_path / "model-00002-of-00002.safetensors"
    )
    with pytest.raises(ModelFileError, match="has it too"):
        open_weights(index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "b", "a": "c"}}',
        "\xff",
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    index = shards(tmp_path)
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFileError, match=index.name):
        open_weights(index)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_may_lead_to_the_blobs_of_a_cache_alone(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    index = shards(snapshot)
    shard = snapshot / "model-00002-of-00002.safetensors"
    blob = shard.rename(repo / "blobs" / "0123")
    shard.symlink_to(os.path.relpath(blob, snapshot))
    assert set(open_weights(index).tensors) == {"a", "b"}
    outside = blob.rename(tmp_path / "elsewhere" / "0123")
    for target in (outside, os.path.relpath(outside, snapshot), "/dev/zero", "/proc/self/mem"):
        shard.unlink()
        shard.symlink_to(target)
        with pytest.raises(ModelFileError, match="link that leads out of its directory"):
            open_weights(index)
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises((ModelFileError, ModelNotFoundError)):
        open_weights(index)


def test_one_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(raw({"w": EIGHT}, b"x" * 8))
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert find_weights(tmp_path).name == "weights.safetensors"
    (tmp_path / "more.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match="several files of weights"):
        find_weights(tmp_path)


# Pickles


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "x.pkl"])
def test_pickles_are_refused_by_name_and_never_opened(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps(_Canary(canary))
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / name).write_bytes(data)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    for path in (directory / name, directory):
        with pytest.raises(
            ModelFileError, match=r"is a pickle, which may run code .* take the model's \.safetensors"
        ):
            open_model(path)
    (directory / "model.safetensors").write_bytes(data)  # under a name that is trusted
    with pytest.raises(ModelFileError):
        open_weights(directory / "model.safetensors")
    (directory / "model.gguf").write_bytes(data)
    with pytest.raises(ModelFileError):
        open_model(directory / "model.gguf")
    assert not canary.exists()
    pickle.loads(data)
    assert canary.exists()  # it would have been seen
