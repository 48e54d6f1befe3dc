"""What a family's config.json may say beside what its tiny model says: followed, or refused, never passed over."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.tiny import DATA
from wgllm import models
from wgllm.context import wanted_ctx_size
from wgllm.errors import ModelFileError, UsageError
from wgllm.formats.model_file import ModelFile
from wgllm.models import ModelGraph
from wgllm.models.opening import open_model


class Changed:
    """Directories of tiny models whose config.json says something else."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model"

    def open(self, name: str, drop: tuple[str, ...] = (), **config: Any) -> ModelFile:
        self.path.mkdir(exist_ok=True)
        source = DATA / name / "hf"
        values = json.loads((source / "config.json").read_text()) | config
        (self.path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in drop}))
        shutil.copyfile(source / "model.safetensors", self.path / "model.safetensors")
        return open_model(self.path)

    def build(self, name: str, drop: tuple[str, ...] = (), **config: Any) -> ModelGraph:
        return models.build(self.open(name, drop, **config))


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    return Changed(tmp_path)


def attributes(model: ModelGraph, kind: str, name: str) -> list[Any]:
    """Of the operators of a kind, in order."""
    return [op.attrs[name] for op in model.graph.nodes if op.op == kind]


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}

REFUSED: list[tuple[str, Mapping[str, Any], str, str]] = [
    ("gemma", {"hidden_act": "relu"}, "hidden_act", "'relu' is not supported"),
    ("gemma", {"hidden_activation": "gelu"}, "hidden_activation", "'gelu' is not supported"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional", "True is not supported"),
    ("gemma", {"attention_bias": True}, "blk.0.attn_q.bias", "missing, which config.json asks for"),
    ("gemma", {"attention_bias": 1}, "attention_bias", "true or false"),
    ("gemma", {"rope_scaling": LONG}, "rope_type", "'longrope' is not supported"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation", "'gelu' is not supported"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional", "True is not supported"),
    ("gemma2", {"layer_types": None, "sliding_window": None}, "sliding_window", "missing"),
    ("gemma2", {"sliding_window": 0}, "sliding_window", "above 0"),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types", "each of 3 layers"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layer_types", "'chunked_attention'"),
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping", "makes no sense"),
    ("gemma2", {"final_logit_softcapping": "5"}, "final_logit_softcapping", "should be a number"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar", "makes no sense"),
    ("gpt2", {"activation_function": "gelu"}, "activation_function", "'gelu' is not supported"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights", "False is not supported"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer", "True is not supported"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention", "True is not supported"),
    ("gpt2", {"n_inner": 0}, "n_inner", "above 0"),
    ("gpt2", {"n_inner": 99}, "ffn_up.weight", r"expected \(99, 64\)"),
    ("gpt2", {"tie_word_embeddings": False}, "lm_head.weight", "missing"),
    ("granite", {"attention_multiplier": 0}, "attention_multiplier", "makes no sense"),
    ("granite", {"residual_multiplier": -0.5}, "residual_multiplier", "makes no sense"),
    ("granite", {"embedding_multiplier": None}, "embedding_multiplier", "missing"),
    ("granite", {"logits_scaling": [1]}, "logits_scaling", "should be a number"),
    ("granite", {"hidden_act": "gelu"}, "hidden_act", "'gelu' is not supported"),
    ("granite", {"attention_bias": True}, "blk.0.attn_q.bias", "missing"),
    ("granite", {"mlp_bias": True}, "blk.0.ffn_gate.bias", "missing"),
    ("olmo2", {"hidden_act": "gelu"}, "hidden_act", "'gelu' is not supported"),
    ("olmo2", {"attention_bias": True}, "blk.0.attn_q.bias", "missing"),
    ("olmo2", {"rope_parameters": LONG}, "rope_type", "'longrope' is not supported"),
    ("phi3", {"hidden_act": "gelu"}, "hidden_act", "'gelu' is not supported"),
    ("phi3", {"attention_bias": True}, "attention_bias", "True is not supported"),
    ("phi3", {"sliding_window": -1}, "sliding_window", "above 0"),
    ("phi3", {"rope_scaling": LONG | {"type": "yarn", "rope_type": "yarn"}}, "rope_type", "'yarn'"),
    ("phi3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type", "'linear'"),
    (
        "phi3",
        {"rope_scaling": LONG | {"original_max_position_embeddings": 64}},
        "original_max_position_embeddings",
        "is 4096 here and 64 in rope's settings",
    ),
    ("phi3", {"rope_scaling": LONG | {"factor": -2}}, "factor", "makes no sense"),
    ("phi3", {"rope_scaling": LONG | {"attention_factor": 0}}, "attention_factor", "makes no sense"),
    ("phi3", {"rope_scaling": LONG | {"long_factor": [1.0] * 7}}, "long_factor", "should be 8 numbers"),
    ("qwen3", {"attention_bias": True}, "blk.0.attn_q.bias", "missing"),
    ("qwen3", {"hidden_act": "gelu"}, "hidden_act", "'gelu' is not supported"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "layer_types": None},
     "sliding_window", "a window of 9 tokens"),
    ("stablelm", {"use_qkv_bias": False}, "blk.0.attn_q.bias", "unknown to config.json"),
    ("stablelm", {"qk_layernorm": True}, "blk.0.attn_q_norm.weight", "missing"),
    ("stablelm", {"use_parallel_residual": True}, "blk.0.ffn_norm.weight", "unknown to config.json"),
    ("stablelm", {"hidden_act": "gelu"}, "hidden_act", "'gelu' is not supported"),
    ("stablelm-12b", {"qk_layernorm": False}, "blk.0.attn_q_norm.weight", "unknown to config.json"),
    ("stablelm-12b", {"use_parallel_residual": False}, "blk.0.ffn_norm.weight", "missing"),
    ("stablelm-12b", {"num_key_value_heads": 4}, "attn_k.weight", "expected"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "field", "words"), REFUSED)
def test_what_would_compute_something_else_is_refused(
    changed: Changed, name: str, config: Mapping[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ModelFileError, match=words) as caught:
        changed.build(name, **config)
    assert field in caught.value.field


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),  # as the first checkpoints say
        ("gemma2", {"hidden_act": "gelu", "use_sliding_window": False}),  # means nothing here
        ("gpt2", {"reorder_and_upcast_attn": True, "n_inner": 256}),
        ("phi3", {"rope_scaling": {"type": "default"}, "use_sliding_window": False}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "layer_types": None}),
    ],
)
def test_what_computes_the_same_is_not(changed: Changed, name: str, config: Mapping[str, Any]) -> None:
    plain = changed.build(name).graph
    assert changed.build(name, **config).graph.nodes == plain.nodes


# Gemma 2


def test_softcaps_that_are_null_are_none_and_absent_ones_are_the_usual(changed: Changed) -> None:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    assert attributes(changed.build("gemma2"), "softcap", "cap") == [2.0, 2.0, 2.0, 5.0]
    assert attributes(changed.build("gemma2", drop=caps), "softcap", "cap") == [50.0, 50.0, 50.0, 30.0]
    assert attributes(changed.build("gemma2", **dict.fromkeys(caps)), "softcap", "cap") == []


def test_which_layers_of_gemma2_have_a_window(changed: Changed) -> None:
    def windows(**config: Any) -> list[int | None]:
        return attributes(changed.build("gemma2", **config), "mask", "window")

    assert windows() == [32, None, 32]
    assert windows(drop=("layer_types",)) == [32, None, 32]
    assert windows(drop=("layer_types", "sliding_window")) == [4096, None, 4096]
    assert windows(layer_types=["full_attention", "sliding_attention", "full_attention"]) == [None, 32, None]
    assert windows(layer_types=["full_attention"] * 3, sliding_window=None) == [None] * 3


def test_queries_of_gemma2_are_scaled_as_its_config_says(changed: Changed) -> None:
    def scale(**config: Any) -> float:
        scales: list[float] = attributes(changed.build("gemma2", **config), "scale", "factor")
        return scales[1]  # after that of the embedding

    assert scale() == pytest.approx(1 / math.sqrt(32))
    assert scale(query_pre_attn_scalar=144) == pytest.approx(1 / 12)
    assert scale(drop=("query_pre_attn_scalar",)) == pytest.approx(1 / 16)


# GPT-2


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_as_it_was_saved_first(tmp_path: Path, prefix: str) -> None:
    """Without its head, with the causal mask, and perhaps without the beginning of all names."""
    source = DATA / "gpt2" / "hf"
    arrays = safetensors.numpy.load_file(source / "model.safetensors")
    arrays = {prefix + name.removeprefix("transformer."): array for name, array in arrays.items()}
    for i in range(2):
        arrays[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.uint8))
        arrays[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    made, expected = open_model(tmp_path), open_model(source)
    assert made.tensors.keys() == expected.tensors.keys()
    for name, view in expected.tensors.items():
        assert np.array_equal(made.tensors[name].array(), view.array())


def test_gpt2_has_no_more_positions_than_it_learned(changed: Changed) -> None:
    assert changed.build("gpt2").most_positions == 512
    with pytest.raises(ModelFileError, match=r"position_embd\.weight.*expected \(1024, 64\)"):
        changed.build("gpt2", drop=("n_positions",))


# Rope


def test_dynamic_rope_goes_no_further_than_the_training_did(changed: Changed) -> None:
    plain = changed.build("olmo2")
    scaled = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500000.0}
    model = changed.build("olmo2", rope_parameters=scaled)
    assert model.graph.nodes == plain.graph.nodes
    assert (plain.most_positions, model.most_positions) == (None, 512)
    assert wanted_ctx_size(model, 512) == 512
    with pytest.raises(UsageError, match="the model has learned 512 positions"):
        wanted_ctx_size(model, 513)


def test_longrope_of_phi3(changed: Changed) -> None:
    def magnitude(**rope: Any) -> float:
        model = changed.build("phi3", rope_scaling=LONG | rope, max_position_embeddings=8192)
        assert model.config.rope.context == 4096  # by the class, where the file does not say it
        return attributes(model, "rope", "magnitude")[0]  # type: ignore[no-any-return]

    # transformers: _compute_longrope_parameters
    assert magnitude() == pytest.approx(math.sqrt(1 + math.log(2) / math.log(4096)))
    assert magnitude(factor=16.0) == pytest.approx(math.sqrt(1 + math.log(16) / math.log(4096)))
    assert magnitude(factor=0.5) == 1.0
    assert magnitude(factor=16.0, attention_factor=1.25) == 1.25


def test_how_much_of_a_head_stablelm_turns(changed: Changed) -> None:
    for rope in ({"rope_theta": 10000.0}, None):
        model = changed.build("stablelm", rope_parameters=rope)
        assert set(attributes(model, "rope", "dim")) == {4}
    model = changed.build("stablelm", rope_parameters=None, partial_rotary_factor=0.5)
    assert set(attributes(model, "rope", "dim")) == {8}


# Granite


def test_multipliers_that_granite_leaves_out_are_one(changed: Changed) -> None:
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    said = attributes(changed.build("granite"), "scale", "factor")
    assert said == [3.0, 0.4, 0.6, 0.6, 0.4, 0.6, 0.6, 1 / 0.8]
    assert set(attributes(changed.build("granite", drop=names), "scale", "factor")) == {1.0}
