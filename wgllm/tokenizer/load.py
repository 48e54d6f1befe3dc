"""From a file, a directory or an opened model to its tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wgllm.errors import ModelFileError, ModelNotFoundError, printable
from wgllm.tokenizer.base import Tokenizer
from wgllm.tokenizer.vocabulary import no_garbage_collection

if TYPE_CHECKING:
    from wgllm.formats.model_file import ModelFile


def load_tokenizer(path: str | os.PathLike[str], *, n_rows: int | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file, a ``tokenizer.model``, a ``tokenizer.json``, or a directory with one.

    ``n_rows`` of the embedding there are: added tokens beyond them (of a checkpoint's image part, say) are left out.
    Raises ModelNotFoundError where there is none, and ModelFileError, naming file and field, where it is bad.
    """
    path = Path(path)
    if path.is_dir():
        return _from_directory(path, n_rows)
    if path.is_file() and path.name.endswith((".safetensors", ".safetensors.index.json")):
        return _from_directory(path.parent, n_rows)
    if not path.is_file():
        raise ModelNotFoundError(f"no tokenizer at {str(path)!r}")
    if path.suffix == ".json":
        from wgllm.tokenizer.hf import from_tokenizer_json

        return from_tokenizer_json(path, n_rows)
    if path.suffix == ".model":
        from wgllm.tokenizer.hf import from_sentencepiece

        return from_sentencepiece(path, n_rows)
    from wgllm.formats.gguf import open_gguf

    model = open_gguf(path)
    try:
        return tokenizer_from_model(model)
    finally:
        model.close()


def tokenizer_from_model(model: ModelFile) -> Tokenizer:
    """The tokenizer of an opened model: from its metadata, else from the files beside it."""
    kind = model.metadata.get("tokenizer.ggml.model")
    if kind == "llama":
        from wgllm.tokenizer.spm import spm_from_gguf

        with no_garbage_collection():
            return spm_from_gguf(model.path, model.metadata)
    if kind == "gpt2":
        from wgllm.tokenizer.bpe import bpe_from_gguf

        with no_garbage_collection():
            return bpe_from_gguf(model.path, model.metadata)
    if kind is not None:
        problem = f"{printable(repr(kind), 30)} is unknown; known are llama and gpt2"
        raise ModelFileError(model.path, "tokenizer.ggml.model", problem)
    directory = model.path if model.path.is_dir() else model.path.parent
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        embedding = model.tensors.get("token_embd.weight")
        return _from_directory(directory, None if embedding is None else embedding.shape[0])
    raise ModelFileError(model.path, "tokenizer.ggml.model", "is missing: the file has no tokenizer")


def _from_directory(directory: Path, n_rows: int | None = None) -> Tokenizer:
    # tokenizer.json first: it has the added tokens too, which a tokenizer.model lacks.
    for name in ("tokenizer.json", "tokenizer.model"):
        if (directory / name).is_file():
            return load_tokenizer(directory / name, n_rows=n_rows)
    found = sorted(directory.glob("*.gguf"))
    if len(found) == 1:
        return load_tokenizer(found[0])
    raise ModelNotFoundError(f"no tokenizer.json, tokenizer.model or single GGUF file in {str(directory)!r}")
