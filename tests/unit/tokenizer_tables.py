"""Small vocabularies as GGUF metadata, made from the tokenizers in ``tests/data/tok``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wgllm.formats.model_file import ModelFile
from wgllm.tokenizer import Tokenizer, tokenizer_from_model
from wgllm.tokenizer.spm_proto import parse_model

TOK = Path(__file__).parents[1] / "data" / "tok"


def cases(name: str) -> list[dict[str, Any]]:
    """32 texts with their ids and the text that these decode to."""
    text = (TOK / name / "encode_expected.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["cases"]
    assert len(found) == 32
    return found


def spm_metadata(name: str = "spm") -> dict[str, Any]:
    """``tokenizer.ggml.*`` with the vocabulary of a ``tokenizer.model``."""
    model = parse_model((TOK / name / "tokenizer.model").read_bytes())
    index = {text: i for i, text in enumerate(model.texts)}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(model.texts),
        "tokenizer.ggml.scores": model.scores.copy(),
        "tokenizer.ggml.token_type": model.types.astype(np.int32),
        "tokenizer.ggml.bos_token_id": index[model.special_texts["bos"]],
        "tokenizer.ggml.eos_token_id": index[model.special_texts["eos"]],
        "tokenizer.ggml.unknown_token_id": index[model.special_texts["unk"]],
        "tokenizer.ggml.add_space_prefix": model.add_dummy_prefix,
    }


def bpe_metadata() -> dict[str, Any]:
    """``tokenizer.ggml.*`` with the vocabulary of ``bpe/tokenizer.json``."""
    data = json.loads((TOK / "bpe" / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [""] * 512
    types = np.full(512, 1, np.int32)
    for text, i in data["model"]["vocab"].items():
        tokens[i] = text
    for token in data["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = 3
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 511,
    }


def rename(metadata: dict[str, Any], i: int, text: str, token_type: int) -> dict[str, Any]:
    """Puts another token at ``i``."""
    metadata["tokenizer.ggml.tokens"][i] = text
    metadata["tokenizer.ggml.token_type"][i] = token_type
    return metadata


def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_model(ModelFile(Path("/nowhere/m.gguf"), metadata, {}))
