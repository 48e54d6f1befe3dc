"""One normalised Config for every family, read from a file's metadata and checked against its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wgllm.errors import ModelFileError
from wgllm.formats.model_file import ModelFile
from wgllm.models.rope import Rope, read_rope

# Beyond these a file lies: larger than any model, and small enough that products stay far below 2^63.
_MAX_LAYERS = 10_000
_MAX_WIDTH = 1 << 24
_MAX_CONTEXT = 1 << 31


NormKind = Literal["rms_norm", "layer_norm"]
# Under which key a file has the ε of its norms.
_EPSILON = {"rms_norm": "attention.layer_norm_rms_epsilon", "layer_norm": "attention.layer_norm_epsilon"}


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
    norm: NormKind
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

    def boolean(self, key: str, default: bool) -> bool:
        value = self.file.metadata.get(self.prefix + key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise self.fail(key, "should be true or false")
        return bool(value)

    def full_layers(self, n_layers: int, period: int) -> list[bool]:
        """Which layers see everything, where others have a window: the last of each ``period``, or as the file says
        by a period or a list of windowed layers."""
        key = "attention.sliding_window_pattern"
        pattern = self.file.metadata.get(self.prefix + key)
        if isinstance(pattern, (np.ndarray, list, tuple)):
            if len(pattern) != n_layers:
                raise self.fail(key, f"{len(pattern)} values for {n_layers} layers")
            return [not windowed for windowed in pattern]
        period = self.integer(key, period)
        return [(i + 1) % period == 0 for i in range(n_layers)]

    def windows(self, n_layers: int, period: int, size: int = 0) -> list[int | None]:
        """The window of each layer, None for those that see everything; ``size`` where the file does not say."""
        window = self.integer("attention.sliding_window", size, low=0) or None
        return [None if full else window for full in self.full_layers(n_layers, period)]

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


def read_config(file: ModelFile, norm: NormKind = "rms_norm") -> Config:
    """The Config of an opened model whose norms are of the given kind. Raises ModelFileError naming the key that is
    missing or makes no sense."""
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
    n_ctx_train = keys.integer("context_length", high=_MAX_CONTEXT)
    return Config(
        architecture=file.architecture,
        n_layers=keys.integer("block_count", high=_MAX_LAYERS),
        n_ctx_train=n_ctx_train,
        d_model=d_model,
        d_ff=keys.uniform("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=_vocab_size(file, d_model),
        norm=norm,
        norm_eps=keys.number(_EPSILON[norm]),
        norm_offset=file.conventions.norm_offset,
        rope=read_rope(keys, head_dim, n_ctx_train),
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
