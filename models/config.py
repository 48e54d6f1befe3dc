"""One normalised Config for every family, read from a file's metadata and checked against its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgllm.errors import ModelFileError
from wgllm.formats.model_file import ModelFile

# Beyond these a file lies: larger than any model, and small enough that products stay far below 2^63.
_MAX_LAYERS = 10_000
_MAX_WIDTH = 1 << 24
_MAX_CONTEXT = 1 << 31


@dataclass(frozen=True)
class Rope:
    """How queries and keys are turned by their position."""

    theta: float
    dim: int
    """The first ``dim`` numbers of a head are turned."""
    interleaved: bool
    """Pairs are neighbours (2i, 2i+1); else (i, i + dim/2)."""
    scale: float = 1.0
    """Positions are multiplied by this (linear scaling by a factor f is 1 / f)."""


@dataclass(frozen=True)
class Config:
    """The sizes and constants that all families share."""

    architecture: str
    n_layers: int
    n_ctx_train: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    norm_offset: float
    rope: Rope


class Keys:
    """Typed access to a file's metadata under ``<architecture>.``; every problem is a ModelFileError."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self.prefix = f"{file.architecture}."

    def fail(self, key: str, problem: str) -> ModelFileError:
        return ModelFileError(self.file.path, self.prefix + key, problem)

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = _MAX_WIDTH) -> int:
        value = self.file.metadata.get(self.prefix + key)
        if value is None:
            if default is None:
                raise self.fail(key, "missing")
            return default
        return self._in_range(key, value, low, high)

    def uniform(self, key: str, default: int | None = None) -> int:
        """An integer that some families give per layer; all layers must agree."""
        value = self.file.metadata.get(self.prefix + key)
        if isinstance(value, (np.ndarray, list, tuple)):
            values: Sequence[Any] = list(value)
            if not values or any(v != values[0] for v in values):
                raise self.fail(
                    key, "differs from layer to layer, which wgllm does not support for this family"
                )
            return self._in_range(key, values[0], 1, _MAX_WIDTH)
        return self.integer(key, default)

    def number(self, key: str, default: float | None = None, *, low: float | None = None) -> float:
        """A finite number above 0, or from ``low`` on."""
        value = self.file.metadata.get(self.prefix + key)
        if value is None:
            if default is None:
                raise self.fail(key, "missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise self.fail(key, "should be a number")
        result = float(value)
        if not math.isfinite(result) or (result <= 0 if low is None else result < low):
            raise self.fail(key, f"{result} is not a sensible value")
        return result

    def text(self, key: str, default: str) -> str:
        value = self.file.metadata.get(self.prefix + key, default)
        if not isinstance(value, str):
            raise self.fail(key, "should be a string")
        return value

    def _in_range(self, key: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self.fail(key, "should be an integer")
        if not low <= value <= high:
            raise self.fail(key, f"{int(value)} is outside {low}..{high}")
        return int(value)


def read_config(file: ModelFile) -> Config:
    """The Config of an opened model. Raises ModelFileError naming the key that is missing or makes no sense."""
    keys = Keys(file)
    d_model = keys.integer("embedding_length")
    n_heads = keys.uniform("attention.head_count")
    n_kv_heads = keys.uniform("attention.head_count_kv", n_heads)
    if n_heads % n_kv_heads:
        raise keys.fail("attention.head_count_kv", f"{n_kv_heads} does not divide {n_heads} heads")
    head_dim = keys.integer("attention.key_length", d_model // n_heads)
    if head_dim < 2 or head_dim % 2:
        raise keys.fail("attention.key_length", f"a head dimension of {head_dim} can't be turned in pairs")
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise keys.fail("attention.value_length", "differs from key_length, which wgllm does not support")
    return Config(
        architecture=file.architecture,
        n_layers=keys.integer("block_count", high=_MAX_LAYERS),
        n_ctx_train=keys.integer("context_length", high=_MAX_CONTEXT),
        d_model=d_model,
        d_ff=keys.uniform("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=_vocab_size(file, d_model),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        norm_offset=file.conventions.norm_offset,
        rope=_rope(keys, head_dim),
    )


def _rope(keys: Keys, head_dim: int) -> Rope:
    dim = keys.integer("rope.dimension_count", head_dim)
    if dim > head_dim or dim % 2:
        raise keys.fail("rope.dimension_count", f"{dim} does not fit heads of {head_dim}")
    # Linear is the kind that is meant when none is named; older files call the factor rope.scale_linear; 0 says none.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0, low=0), low=0) or 1.0
    kind = keys.text("rope.scaling.type", "linear")
    if kind == "linear":
        pass
    elif kind == "none":
        factor = 1.0
    else:
        raise keys.fail("rope.scaling.type", f"{kind!r} is not supported (none and linear are)")
    return Rope(
        theta=keys.number("rope.freq_base", 10000.0),
        dim=dim,
        interleaved=keys.file.conventions.rope_interleaved,
        scale=1.0 / factor,
    )


def _vocab_size(file: ModelFile, d_model: int) -> int:
    """Rows of the embedding; the tokenizer must not know more tokens than that."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError(file.path, "tensor token_embd.weight", "missing")
    if len(embedding.shape) != 2 or embedding.shape[1] != d_model or embedding.shape[0] < 1:
        raise ModelFileError(
            file.path,
            "tensor token_embd.weight",
            f"its shape is {embedding.shape}, expected (vocabulary, {d_model})",
        )
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and hasattr(tokens, "__len__") and len(tokens) > embedding.shape[0]:
        raise ModelFileError(
            file.path,
            "tokenizer.ggml.tokens",
            f"{len(tokens)} tokens, but the embedding has {embedding.shape[0]} rows",
        )
    return embedding.shape[0]
