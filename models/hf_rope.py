"""Rope of a Hugging Face checkpoint under GGUF's keys, and the frequency factors that GGUF keeps as tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wgllm.models.hf_family import HfConfig, HfFamily

F32 = NDArray[np.float32]


def rope_settings(family: HfFamily, config: HfConfig) -> tuple[dict[str, Any], dict[str, F32]]:
    """Keys (without the architecture) and tensors [dim / 2]. Raises ModelFileError for a kind that is not supported."""
    rope = config.rope()
    kind = rope["rope_type"]
    if kind not in family.rope_types:
        known = ", ".join(family.rope_types)
        raise config.fail(
            "rope_type", f"{kind!r} is not supported for {family.architecture} (these are: {known})"
        )
    keys: dict[str, Any] = {}
    if (theta := config.number("rope_theta", rope)) is not None:
        keys["rope.freq_base"] = theta
    dim = _rotary_dim(config, rope)
    if dim != config.head_dim:
        keys["rope.dimension_count"] = dim
    made = _KINDS[kind](config, rope, dim) if kind in _KINDS else ({}, {})
    return keys | made[0], made[1]


def local_theta(config: HfConfig) -> float | None:
    """Rope's base in layers with a window, where they have one of their own."""
    if isinstance(config.get("rope_parameters"), dict):
        return config.number("rope_theta", config.rope("sliding_attention"))
    return config.number("rope_local_base_freq")


def same_rope(config: HfConfig) -> None:
    """For a family whose layers all have the same rope: settings for each type of layer are refused."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            raise config.fail(key, "settings for each type of layer are not supported for this family")


def whole_heads(config: HfConfig) -> int:
    """``rope.dimension_count`` of a family that has one rope, which turns heads as a whole in transformers."""
    same_rope(config)
    if _rotary_dim(config, config.rope()) != config.head_dim:
        problem = "rope of a part of each head is not supported for this family"
        raise config.fail("partial_rotary_factor", problem)
    return config.head_dim


def _rotary_dim(config: HfConfig, rope: dict[str, Any]) -> int:
    share = config.number("partial_rotary_factor", rope)
    if share is None:
        share = next(
            (s for k in ("partial_rotary_factor", "rotary_pct") if (s := config.number(k)) is not None), None
        )
    if share is None:
        return config.head_dim if config.get("rotary_dim") is None else config.integer("rotary_dim")
    if not 0 < share <= 1:
        raise config.fail("partial_rotary_factor", f"{share} is not between 0 and 1")
    return int(config.head_dim * share)


def _needed(config: HfConfig, rope: dict[str, Any], key: str) -> float:
    value = config.number(key, rope)
    if value is None or value <= 0:
        raise config.fail(f"rope: {key}", "missing" if value is None else f"{value} makes no sense")
    return value


def _original_ctx(config: HfConfig, rope: dict[str, Any]) -> int:
    key = "original_max_position_embeddings"
    value, beside = rope.get(key), config.get(key)
    if value is not None and beside is not None and value != beside:
        raise config.fail(key, f"is {beside!r} here and {value!r} in rope's settings")
    value = beside if value is None else value
    if value is None:
        return config.n_ctx_train
    if type(value) is not int or value < 2:
        raise config.fail("original_max_position_embeddings", f"{value!r} is not a context")
    return value


Made = tuple[dict[str, Any], dict[str, F32]]


def _linear(config: HfConfig, rope: dict[str, Any], dim: int) -> Made:
    return {"rope.scaling.type": "linear", "rope.scaling.factor": _needed(config, rope, "factor")}, {}


def _dynamic(config: HfConfig, rope: dict[str, Any], dim: int) -> Made:
    """NTK by the length of the text: none at all up to the context that the model was trained for.

    Beyond it each token's frequencies would depend on how many there were when it was read (transformers:
    dynamic_frequency_update); the model gets no more positions than it was trained for.
    """
    if rope.get("alpha") is not None:
        raise config.fail("rope: alpha", "is not supported")
    limit = min(config.n_ctx_train, _original_ctx(config, rope))
    return {"context_length": limit, "rope.scaling.type": "dynamic"}, {}


def _yarn(config: HfConfig, rope: dict[str, Any], dim: int) -> Made:
    if rope.get("truncate") is False:
        raise config.fail("rope: truncate", "false is not supported")
    factor = _needed(config, rope, "factor")
    keys: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": _original_ctx(config, rope),
    }
    for name, key in (
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ):
        if rope.get(name) is not None:
            keys[key] = _needed(config, rope, name)
    # GGUF's factor comes on top of what YaRN has by itself, transformers' stands for both (arXiv 2309.00071, 3.4).
    attention, own = _attention_factor(config, rope), _magnitude(factor, 1.0)
    scale, scale_all = config.number("mscale", rope), config.number("mscale_all_dim", rope)
    if attention is None and scale and scale_all:
        attention = _magnitude(factor, scale) / _magnitude(factor, scale_all)
    if attention is not None:
        keys["rope.scaling.attn_factor"] = attention / own
    return keys, {}


def _attention_factor(config: HfConfig, rope: dict[str, Any]) -> float | None:
    given = rope.get("attention_factor") is not None
    return _needed(config, rope, "attention_factor") if given else None


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(config: HfConfig, rope: dict[str, Any], dim: int) -> Made:
    tensors = {}
    for name in ("long", "short"):
        values = rope.get(f"{name}_factor")
        if not isinstance(values, list) or len(values) != dim // 2 or not all(_is_factor(v) for v in values):
            raise config.fail(f"rope: {name}_factor", f"should be {dim // 2} numbers above 0")
        tensors[f"rope_factors_{name}.weight"] = np.array(values, np.float32)
    original = _original_ctx(config, rope)
    attention = _attention_factor(config, rope)
    if attention is None:
        given = rope.get("factor") is not None
        grows = _needed(config, rope, "factor") if given else config.n_ctx_train / original
        attention = math.sqrt(1 + math.log(grows) / math.log(original)) if grows > 1 else 1.0
    return {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": attention,
    }, tensors


def _is_factor(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 < value < 1e30


def _llama3(config: HfConfig, rope: dict[str, Any], dim: int) -> Made:
    """Llama 3.1's: long waves are stretched by ``factor``, short ones not at all, those between in part.

    Divisors of the frequencies, as llama.cpp's converter keeps them (transformers: _compute_llama3_parameters).
    """
    theta = config.number("rope_theta", rope) or 10000.0
    factor, low, high = (_needed(config, rope, k) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise config.fail("rope: high_freq_factor", f"{high} is not above the low one, {low}")
    original = _original_ctx(config, rope)
    powers = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1) / np.power(np.float32(theta), powers, dtype=np.float32)
    waves = 2 * np.pi / frequencies.astype(np.float64)
    between = (original / waves - low) / (high - low)
    factors = np.where(
        waves < original / high,
        1.0,
        np.where(waves > original / low, factor, 1 / ((1 - between) / factor + between)),
    )
    return {}, {"rope_freqs.weight": factors.astype(np.float32)}


_KINDS = {"linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope, "llama3": _llama3}
