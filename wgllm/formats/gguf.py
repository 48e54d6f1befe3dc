"""Opens GGUF files: maps them, reads their headers, joins shards. Weights stay in the file until used."""

from __future__ import annotations

import mmap
import os
import re
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wgllm.errors import ModelFileError, ModelNotFoundError
from wgllm.formats.gguf_header import Header, parse_header
from wgllm.formats.mapping import close_maps, forget, map_file
from wgllm.formats.model_file import Conventions, ModelFile, Overlay, TensorView
from wgllm.formats.reading import ReadFile, ReadView, close_files

# Architectures whose rope turns neighbours (2i, 2i + 1); llama.cpp: llama_model_rope_type, ROPE_TYPE_NORM.
# For most of them the converter has permuted the rows of Q and K to make it so. All others turn halves.
_INTERLEAVED_ROPE_NAMES = (
    "arcee arctic baichuan bailingmoe chameleon chatglm cohere2 command-r deci deepseek deepseek2 "
    "deepseek2-ocr ernie4_5 ernie4_5-moe glm-dsa glm4 granite granitehybrid granitemoe internlm2 llada "
    "llama llama-embed llama4 maincoder minicpm mistral3 mistral4 neo-bert olmo plm smollm3 starcoder "
    "xverse"
)
_INTERLEAVED_ROPE = frozenset(_INTERLEAVED_ROPE_NAMES.split())

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def open_gguf(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, *, mapped: bool = True
) -> ModelFile:
    """Opens the GGUF file at ``path``, with the other shards when it is the first of several.

    ``overrides`` stand in place of the file's metadata. Reads the header only; tensors are read-only uint8
    views of the mapped file, or unless ``mapped`` read from it at each use (``wgllm.formats.reading``). Raises
    ModelNotFoundError when there is no such file, ModelFileError when it is not a well-formed GGUF file that wgllm can
    read.
    """
    path = Path(path)
    opened = _Opened(mapped)
    try:
        return _open(path, opened, overrides or {})
    except BaseException as error:
        # The frames of the traceback hold the map, and Windows lets nobody delete a mapped file.
        traceback.clear_frames(error.__traceback__)
        opened.close()
        raise


class _Opened:
    """What has to be closed in the end."""

    def __init__(self, mapped: bool) -> None:
        self.mapped = mapped
        self.maps: list[mmap.mmap] = []
        self.files: list[ReadFile] = []

    def close(self) -> None:
        close_maps(self.maps)
        close_files(self.files)


def _open(path: Path, opened: _Opened, overrides: Mapping[str, Any]) -> ModelFile:
    header, tensors = _open_one(path, opened)
    n_shards = _split_value(path, header, "split.count", 1)
    if n_shards > 1 or _split_value(path, header, "split.no", 0):
        _add_shards(path, header, n_shards, tensors, opened)
    metadata = Overlay(header.metadata, overrides) if overrides else header.metadata
    return ModelFile(path, metadata, tensors, _conventions(metadata), opened.close, opened.files)


def _conventions(metadata: Mapping[str, Any]) -> Conventions:
    architecture = metadata.get("general.architecture")
    return Conventions(
        rope_interleaved=isinstance(architecture, str) and architecture in _INTERLEAVED_ROPE,
        norm_offset=0.0,  # the converter has added the 1 of Gemma's 1 + w to the weights
    )


def _open_one(path: Path, opened: _Opened) -> tuple[Header, dict[str, TensorView]]:
    """Opens one file; what has to be closed joins ``opened``."""
    if not opened.mapped:
        return _open_read(path, opened)
    mapped = map_file(path, "a GGUF file")
    opened.maps.append(mapped)
    buffer = memoryview(mapped)
    header = parse_header(buffer, path)
    data = np.frombuffer(buffer, np.uint8)
    tensors = {
        name: TensorView(name, shape, fmt, data[start:stop], partial(forget, mapped, start, stop))
        for name, shape, fmt, start, stop in header.tensors
    }
    return header, tensors


def _open_read(path: Path, opened: _Opened) -> tuple[Header, dict[str, TensorView]]:
    """One file of which nothing stays mapped."""
    file = ReadFile(path, "a GGUF file")
    opened.files.append(file)
    mapped = file.map()
    opened.maps.append(mapped)
    header = parse_header(memoryview(mapped), path)
    header = replace(header, metadata=header.metadata.copied())
    close_maps([opened.maps.pop()])
    tensors: dict[str, TensorView] = {
        name: ReadView(name, shape, fmt, file, start) for name, shape, fmt, start, _ in header.tensors
    }
    return header, tensors


def _split_value(path: Path, header: Header, key: str, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if value is None:
        raise ModelFileError(path, key, "is missing from this shard")
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelFileError(path, key, "is not a number of shards or tensors")
    return value


def _add_shards(
    path: Path, header: Header, count: int, tensors: dict[str, TensorView], opened: _Opened
) -> None:
    """Adds the tensors of shards 2 … ``count`` to ``tensors``, those of the first shard at ``path``."""
    name = _SHARD_NAME.fullmatch(path.name)
    no = _split_value(path, header, "split.no")
    if no:
        first = f"{name['stem']}-00001-of-{name['count']}.gguf" if name else "the first one"
        raise ModelFileError(path, "split.no", f"this is shard {no + 1} of {count}; open {first}")
    if not name or int(name["no"]) != 1 or int(name["count"]) != count:
        expected = f"NAME-00001-of-{count:05}.gguf"
        raise ModelFileError(
            path, "split.count", f"the first of {count} shards must be named {expected} to find the others"
        )
    total = _split_value(path, header, "split.tensors.count")
    for i in range(1, count):
        shard = path.with_name(f"{name['stem']}-{i + 1:05}-of-{count:05}.gguf")
        try:
            shard_header, shard_tensors = _open_one(shard, opened)
        except ModelNotFoundError:
            problem = f"shard {i + 1} of {count}, {shard.name}, is missing"
            raise ModelFileError(path, "split.count", problem) from None
        for key, expected_value in (("split.no", i), ("split.count", count), ("split.tensors.count", total)):
            value = _split_value(shard, shard_header, key)
            if value != expected_value:
                raise ModelFileError(shard, key, f"is {value}, not {expected_value}: from another model?")
        twice = next((tensor for tensor in shard_tensors if tensor in tensors), None)
        if twice is not None:
            raise ModelFileError(shard, f"tensor {twice}", "an earlier shard has it too")
        tensors.update(shard_tensors)
    if len(tensors) != total:
        raise ModelFileError(path, "split.tensors.count", f"is {total}, but the shards have {len(tensors)}")
