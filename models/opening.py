"""Opens whatever a path names: a GGUF file, or a model directory of Hugging Face."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wgllm.errors import ModelFileError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import ModelFile
from wgllm.formats.quantized import quantized
from wgllm.formats.safetensors import find_weights, refuse_pickle
from wgllm.models import HF_FAMILIES
from wgllm.models.hugging_face import is_hugging_face, open_hugging_face

_LATER_SHARD = re.compile(r".*-(?!00001)[0-9]{5}-of-[0-9]{5}\.gguf", re.DOTALL)


def open_model(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    *,
    quantize: str | None = None,
    mapped: bool = True,
) -> ModelFile:
    """Opens the model at ``path``: a GGUF file (the first, when it is split), a directory with config.json and
    safetensors, its index or one of its files, or a directory without such that has one GGUF model.

    ``overrides`` stand in place of the file's metadata. ``quantize`` names a format that large float weights are
    rounded to as they are read. Unless ``mapped``, weights are read from their files at each use, which may then change
    without harm to this process. Reads headers only. Raises ModelNotFoundError, ModelFileError, UsageError.
    """
    path = Path(path)
    refuse_pickle(path)
    if path.is_dir() and not (is_hugging_face(path) and any(path.glob("*.safetensors"))):
        path = _gguf_in(path)  # which may have a config.json beside it
    file = (
        open_hugging_face(path, HF_FAMILIES, overrides, mapped=mapped)
        if is_hugging_face(path)
        else open_gguf(path, overrides, mapped=mapped)
    )
    try:
        return file if quantize is None else quantized(file, quantize)
    except BaseException:
        file.close()
        raise


def _gguf_in(directory: Path) -> Path:
    """The only GGUF model of a directory without safetensors."""
    found = [p for p in sorted(directory.glob("*.gguf")) if not _LATER_SHARD.fullmatch(p.name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found[:5])
        raise ModelFileError(directory, "directory", f"has several models; name one of {names}")
    find_weights(directory)  # says what is wrong with what is there
    raise ModelFileError(directory, "config.json", "is missing, without which weights mean nothing")
