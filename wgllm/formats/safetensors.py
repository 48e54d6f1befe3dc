"""The safetensors format: files mapped, their headers checked, shards joined. Weights stay in the file until used.

The format (https://github.com/huggingface/safetensors#format): a length of 8 bytes, as many bytes of JSON that give
every tensor's dtype, shape and place, then the tensors without gaps. Names are the file's own here; what they mean to
a model, ``wgllm.models.hugging_face`` knows.
"""

from __future__ import annotations

import mmap
import os
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np

from wgllm.errors import ModelFileError, ModelNotFoundError
from wgllm.formats.mapping import close_maps, forget, map_file
from wgllm.formats.model_file import TensorView
from wgllm.formats.reading import ReadFile, ReadView, close_files
from wgllm.formats.strict_json import parse_json, read_json
from wgllm.quant import format_by_name

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_INDEX_BYTES = 100_000_000
MAX_TENSORS = 1 << 17
MAX_DIMS = 16
MAX_SHARDS = 1 << 12
_MAX_INT64 = (1 << 63) - 1

# The format's dtypes by their bits; wgllm computes with the floats of 16 and 32.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
}  # fmt: skip
_FORMATS = ("F32", "F16", "BF16")

# Files that run code when they are opened, by what they are named.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_NOT_SAFETENSORS = (
    (b"version https://git-lfs", "this is a Git LFS pointer, not the model; fetch it with 'git lfs pull'"),
    (b"<", "this is a web page, not a model; the download went wrong"),
    (b"PK\x03\x04", "this is a zip archive (PyTorch?), not safetensors"),
    (b"\x80", "this is a Python pickle, which wgllm never opens"),
    (b"GGUF", "this is GGUF, but its name says safetensors; give it a name that ends in .gguf"),
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    """The file."""
    start: int
    stop: int
    """Its bytes in the file."""
    source: mmap.mmap | ReadFile = field(repr=False, compare=False)

    def view(self, name: str | None = None) -> TensorView:
        """``name``, if it is to have another. Raises ModelFileError for a dtype that wgllm does not compute with."""
        if self.dtype not in _FORMATS:
            known = ", ".join(_FORMATS)
            problem = f"its type {self.dtype} is not supported ({known} are)"
            raise ModelFileError(self.path, f"tensor {self.name}", problem)
        name, shape, fmt = name or self.name, self.shape or (1,), format_by_name(self.dtype)
        if isinstance(self.source, ReadFile):
            return ReadView(name, shape, fmt, self.source, self.start)
        data = np.frombuffer(self.source, np.uint8, self.stop - self.start, self.start)
        return TensorView(name, shape, fmt, data, partial(forget, self.source, self.start, self.stop))


@dataclass
class Weights:
    """The tensors of one model, out of one file or several."""

    path: Path
    """The file, or the index of several."""
    tensors: dict[str, StoredTensor]
    maps: list[mmap.mmap] = field(default_factory=list)
    files: list[ReadFile] = field(default_factory=list)
    """Those that are read instead of mapped."""

    def close(self) -> None:
        self.tensors = {}
        close_maps(self.maps)
        close_files(self.files)


def refuse_pickle(path: Path) -> None:
    """Raises ModelFileError for files that can run code when they are opened. It looks at the name alone."""
    if path.suffix.lower() in _PICKLES:
        raise ModelFileError(
            path,
            "file",
            "is a pickle, which may run code when it is opened, so wgllm never does; take the model's .safetensors or "
            "a GGUF file instead",
        )


def find_weights(directory: Path) -> Path:
    """The file with the weights, or the index of several. Raises ModelNotFoundError, ModelFileError.

    As transformers does, ``model.safetensors`` goes before an index; another name does where it is the only one.
    """
    for name in (SINGLE_NAME, INDEX_NAME):
        if (directory / name).exists() or (directory / name).is_symlink():
            return directory / name
    try:
        names = sorted(p.name for p in directory.iterdir())
    except OSError as error:
        raise ModelFileError(directory, "directory", f"cannot be read: {error.strerror}") from None
    indices = [n for n in names if n.endswith(".safetensors.index.json")]
    found = [
        n for n in names if n.endswith(".safetensors") and not n.startswith(("adapter_", "consolidated"))
    ]
    for some in (indices, found):
        if len(some) == 1:
            return directory / some[0]
        if some:
            listed = ", ".join(some[:5])
            raise ModelFileError(
                directory, "directory", f"has several files of weights; name one of {listed}"
            )
    for name in names:
        refuse_pickle(directory / name)
    if any(n.startswith("adapter_") for n in names):
        raise ModelFileError(
            directory, "directory", "holds an adapter (LoRA) and no model; give its base model"
        )
    raise ModelNotFoundError(f"no model.safetensors and no {INDEX_NAME} in {str(directory)!r}")


def open_weights(path: Path, *, mapped: bool = True) -> Weights:
    """Opens the safetensors file, or the index with all its shards, at ``path``. Reads headers only.

    Unless ``mapped``, tensors are read from their file at each use (``wgllm.formats.reading``). Raises
    ModelNotFoundError when there is no such file, ModelFileError for anything malformed, and for links and names that
    lead out of the directory.
    """
    refuse_pickle(path)
    weights = Weights(path, {})
    try:
        if path.name.endswith(".json"):
            _open_shards(weights, mapped)
        else:
            _check_inside(path, path.parent, path)
            _open_one(path, weights, mapped)
    except BaseException as error:
        # The frames of the traceback hold the maps, and Windows lets nobody delete a mapped file.
        traceback.clear_frames(error.__traceback__)
        weights.close()
        raise
    return weights


def _open_one(path: Path, weights: Weights, mapped: bool) -> list[str]:
    """Adds a file's tensors; returns their names."""
    kind = "a safetensors file"
    source: mmap.mmap | ReadFile
    if mapped:
        source = mapping = map_file(path, kind)
    else:
        weights.files.append(source := ReadFile(path, kind))
        mapping = source.map()
    weights.maps.append(mapping)
    names = []
    with memoryview(mapping) as buffer:
        for name, dtype, shape, start, stop in parse_header(buffer, path):
            if name in weights.tensors:
                other = weights.tensors[name].path.name
                raise ModelFileError(path, f"tensor {name}", f"{other} has it too")
            weights.tensors[name] = StoredTensor(name, dtype, shape, path, start, stop, source)
            names.append(name)
    if not mapped:
        close_maps([weights.maps.pop()])
    return names


def _open_shards(weights: Weights, mapped: bool) -> None:
    path = weights.path
    where = shards_of(path)
    files = list(dict.fromkeys(where.values()))
    for file in files:
        _check_inside(path.parent / file, path.parent, path)
    for file in files:
        try:
            names = _open_one(path.parent / file, weights, mapped)
        except ModelNotFoundError:
            raise ModelFileError(path, "weight_map", f"the shard {file} is missing") from None
        for name in names:
            if where.get(name, file) != file:
                problem = f"lies in {file}, but the index says {where[name]}"
                raise ModelFileError(path, f"tensor {name}", problem)
    for name, file in where.items():
        if name not in weights.tensors:
            raise ModelFileError(path, f"tensor {name}", f"is not in {file}, where the index says it is")


def shards_of(index: Path) -> dict[str, str]:
    """Tensor → file, of an index. Raises ModelFileError unless files are plain names of safetensors files."""
    where = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ModelFileError(index, "weight_map", "is missing or names no tensors")
    if len(where) > MAX_TENSORS or len(set(map(str, where.values()))) > MAX_SHARDS:
        raise ModelFileError(index, "weight_map", "names more tensors or files than any model has")
    for name, file in where.items():
        if not isinstance(file, str):
            raise ModelFileError(index, f"weight_map: {name}", "is not the name of a file")
        if not _is_plain(file):
            problem = f"{file!r} is not the name of a file in the same directory"
            raise ModelFileError(index, f"weight_map: {name}", problem)
        refuse_pickle(index.parent / file)
        if not file.endswith(".safetensors"):
            raise ModelFileError(index, f"weight_map: {name}", f"{file!r} is not a safetensors file")
    return where


def _is_plain(name: str) -> bool:
    """Whether a name stays in its directory on any system."""
    bad = set('/\\:*?"<>|')
    return name != "" and name.isprintable() and not name.startswith(".") and not bad & set(name)


def _check_inside(path: Path, directory: Path, named_by: Path) -> None:
    """Raises ModelFileError for a link out of the directory, unless it leads to the blobs of a Hugging Face cache."""
    try:
        real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    except (OSError, ValueError) as error:
        raise ModelFileError(named_by, "file", f"cannot be read: {error}") from None
    # models--org--name/snapshots/<commit>/model.safetensors -> ../../blobs/<hash>
    if real.is_relative_to(folder) or any(
        above.name == "snapshots" and real.parent == above.parent / "blobs" for above in folder.parents
    ):
        return
    raise ModelFileError(
        named_by,
        f"file {path.name}",
        "is a link that leads out of its directory; copy the file there instead",
    )


# The header

Entry = tuple[str, str, tuple[int, ...], int, int]
"""Name, dtype, shape, and its bytes in the file: start and stop."""


def parse_header(buffer: memoryview, path: Path) -> list[Entry]:
    """The tensors of the safetensors file in ``buffer`` (uint8, the whole file); ``path`` is for messages.

    Raises ModelFileError unless the tensors fill the file from the header to its end, without holes or overlaps.
    """

    def fail(problem: str, name: str = "header") -> NoReturn:
        raise ModelFileError(path, name, problem)

    size = len(buffer)
    start = bytes(buffer[:64])
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > size - 8 or length > MAX_HEADER_BYTES:
        for begin, problem in _NOT_SAFETENSORS:
            if start.lstrip().startswith(begin):
                fail(problem)
        if size < 8:
            fail(f"the file has {size} bytes, too few for a header")
        if length > MAX_HEADER_BYTES:
            fail(f"says that it has {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
        fail(f"says that it has {length} bytes, more than the file ({size} bytes)")
    if start[8:9] != b"{":
        fail("does not begin with {: this is not a safetensors file")
    header = parse_json(bytes(buffer[8 : 8 + length]), path, "header", integers=True)
    _check_metadata(header.pop("__metadata__", None), fail)
    if len(header) > MAX_TENSORS:
        fail(f"has {len(header)} tensors; wgllm reads at most {MAX_TENSORS}")
    entries = [_entry(name, info, path) for name, info in header.items()]
    _check_places(entries, size - 8 - length, path)
    return [
        (name, dtype, shape, 8 + length + begin, 8 + length + end)
        for name, dtype, shape, begin, end in entries
    ]


def _check_metadata(metadata: Any, fail: Any) -> None:
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        fail("__metadata__ should map texts to texts")


def _entry(name: str, info: Any, path: Path) -> Entry:
    """Checked as far as one tensor can be alone; its place is counted from the end of the header."""

    def fail(problem: str) -> NoReturn:
        raise ModelFileError(path, f"tensor {name}", problem)

    if not isinstance(info, Mapping):
        fail("is not described by an object")
    dtype, shape, place = (info.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        fail(f"has the unknown dtype {dtype!r}" if "dtype" in info else "has no dtype")
    if not _are_sizes(shape):
        fail("its shape is not a list of sizes")
    if len(shape) > MAX_DIMS:
        fail(f"has {len(shape)} dimensions; at most {MAX_DIMS} are allowed")
    if not _are_sizes(place) or len(place) != 2:
        fail("its data_offsets are not two places")
    count = bound = 1
    for dim in shape:
        count *= dim
        bound *= dim or 1
    if bound * _BITS[dtype] > _MAX_INT64:
        fail("has 2**63 bits or more")
    begin, end = place
    if begin > end or end > _MAX_INT64:
        fail(f"its data_offsets {begin} to {end} make no sense")
    if count * _BITS[dtype] != 8 * (end - begin):
        fail(
            f"takes {end - begin} bytes, but {dtype} of shape {tuple(shape)} takes {count * _BITS[dtype] // 8}"
        )
    return name, dtype, tuple(shape), begin, end


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(entries: list[Entry], size: int, path: Path) -> None:
    """One after the other, the tensors must fill ``size`` bytes."""
    at = 0
    for name, _, _, begin, end in _by_place(entries):
        if begin != at:
            how = "overlaps the one before it" if begin < at else "leaves a hole before it"
            raise ModelFileError(path, f"tensor {name}", f"begins at byte {begin} of the data and {how}")
        if end > size:
            problem = f"ends at byte {end} of the data, past the end of the file ({size} bytes of data)"
            raise ModelFileError(path, f"tensor {name}", problem)
        at = end
    if at != size:
        raise ModelFileError(path, "file", f"{size - at} bytes follow the last tensor, which belong to none")


def _by_place(entries: list[Entry]) -> Iterator[Entry]:
    yield from sorted(entries, key=lambda entry: entry[3:])
