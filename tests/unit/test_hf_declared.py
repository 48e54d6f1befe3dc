"""What families refuse in a config.json as their graph would compute something else, and what it may leave out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.tiny import DATA
from wgllm import models
from wgllm.errors import ModelFileError
from wgllm.formats.model_file import ModelFile
from wgllm.models.hf_family import HfConfig, grouped_heads
from wgllm.models.opening import open_model


class Variant:
    """A tiny model's directory with another config.json or other tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(
        self, name: str, *, drop: tuple[str, ...] = (), style: str = "config.json", **config: Any
    ) -> ModelFile:
        source = DATA / name / "hf"
        values = json.loads((source / style).read_text(encoding="utf-8")) | config
        values = {k: v for k, v in values.items() if k not in drop}
        (self.folder / "config.json").write_text(json.dumps(values))
        weights = self.folder / "model.safetensors"
        if not weights.exists():
            shutil.copy(source / "model.safetensors", weights)
        return open_model(self.folder)

    def rewrite(self, name: str, **changed: str | np.ndarray[Any, Any] | None) -> None:
        """Tensors renamed or, where the value is an array, added."""
        tensors = safetensors.numpy.load_file(DATA / name / "hf" / "model.safetensors")
        for key, value in changed.items():
            if isinstance(value, str):
                tensors[value] = tensors.pop(key)
            elif value is not None:
                tensors[key] = value
        safetensors.numpy.save_file(tensors, self.folder / "model.safetensors")


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    return Variant(tmp_path)


NESTED = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e6},
}
DENSE = ("cohere2", "command-r", "falcon-7b", "falcon-40b", "gptneox", "smollm3", "starcoder2")
WHOLE_HEADS = tuple(name for name in DENSE if name != "gptneox")
SLIDING = ["sliding_attention", "full_attention", "full_attention", "full_attention"]


@pytest.mark.parametrize(
    ("name", "config", "field"),
    [
        *((name, {"rope_parameters": NESTED}, "rope_parameters") for name in DENSE),
        *((name, {"rope_parameters": {"rope_type": "longrope"}}, "rope_type") for name in DENSE),
        *((name, {"rope_parameters": {"rope_type": "llama3"}}, "rope_type") for name in DENSE),
        *(
            (name, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor")
            for name in WHOLE_HEADS
        ),
        ("command-r", {"hidden_act": "gelu"}, "hidden_act"),
        ("command-r", {"logit_scale": 0}, "logit_scale"),
        ("command-r", {"logit_scale": -1.0}, "logit_scale"),
        ("command-r", {"logit_scale": None}, "command-r.logit_scale"),
        ("command-r", {"logit_scale": "1"}, "logit_scale"),
        ("command-r", {"tie_word_embeddings": False}, "lm_head.weight"),
        ("cohere2", {"layer_types": ["full_attention"] * 4}, "attention.sliding_window"),
        ("cohere2", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("cohere2", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("cohere2", {"sliding_window": None}, "attention.sliding_window"),
        ("cohere2", {"sliding_window": -5}, "sliding_window"),
        ("gptneox", {"hidden_act": "relu"}, "hidden_act"),
        ("gptneox", {"rotary_emb_base": 10, "rope_theta": 20}, "rotary_emb_base"),
        ("gptneox", {"use_parallel_residual": "yes"}, "use_parallel_residual"),
        ("gptneox", {"num_attention_heads": 8, "head_dim": 4}, "query_key_value"),
        ("falcon-7b", {"alibi": True}, "alibi"),
        ("falcon-7b", {"activation": "relu"}, "activation"),
        ("falcon-7b", {"parallel_attn": False}, "parallel_attn"),
        ("falcon-7b", {"parallel_attn": None}, "parallel_attn"),
        ("falcon-7b", {"multi_query": None}, "query_key_value"),
        ("falcon-7b", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads"),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon-7b", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("falcon-7b", {"ffn_hidden_size": None}, "ffn_up.weight"),
        ("falcon-40b", {"num_kv_heads": 3}, "num_kv_heads"),
        ("falcon-40b", {"num_attention_heads": 1 << 40, "num_kv_heads": 1}, "num_attention_heads"),
        ("gptneox", {"num_attention_heads": 1 << 40, "hidden_size": 1 << 50}, "num_attention_heads"),
        ("gptneox", {"num_attention_heads": 128}, "query_key_value"),
        ("smollm3", {"num_hidden_layers": 1 << 40, "layer_types": None}, "no_rope_layers"),
        (
            "smollm3",
            {"num_hidden_layers": 1 << 40, "no_rope_layers": None, "layer_types": None},
            "block_count",
        ),
        ("falcon-40b", {"num_kv_heads": 1}, "query_key_value"),
        ("falcon-40b", {"num_kv_heads": 4}, "query_key_value"),
        ("falcon-40b", {"new_decoder_architecture": None}, "num_ln_in_parallel_attn"),
        ("falcon-40b", {"parallel_attn": False}, "parallel_attn"),
        ("starcoder2", {"hidden_act": "gelu"}, "hidden_act"),
        ("starcoder2", {"mlp_type": "gated"}, "mlp_type"),
        ("starcoder2", {"norm_type": "rms_norm"}, "norm_type"),
        ("starcoder2", {"sliding_window": 4096, "use_sliding_window": False}, "use_sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": []}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 1, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": {"0": 1}}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ("smollm3", {"layer_types": SLIDING, "sliding_window": 8}, "sliding_window"),
        (
            "smollm3",
            {"layer_types": None, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4},
            "sliding_window",
        ),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(
    variant: Variant, name: str, config: dict[str, Any], field: str
) -> None:
    with pytest.raises(ModelFileError) as caught:
        models.build(variant.open(name, **config))
    assert field in caught.value.field


ALL_DEFAULTS = {
    "command-r": ("layer_norm_eps", "tie_word_embeddings", "hidden_act"),
    "cohere2": ("layer_norm_eps", "tie_word_embeddings", "hidden_act", "layer_types"),
    "gptneox": ("layer_norm_eps", "tie_word_embeddings", "rope_theta", "rotary_pct", "use_parallel_residual"),
    "falcon-7b": (
        "layer_norm_epsilon", "tie_word_embeddings", "rope_theta", "multi_query", "parallel_attn",
        "new_decoder_architecture", "num_kv_heads", "activation", "alibi", "bias",
    ),
    "falcon-40b": ("num_ln_in_parallel_attn", "multi_query", "parallel_attn"),
    "starcoder2": ("norm_epsilon", "tie_word_embeddings", "num_key_value_heads", "sliding_window"),
    "smollm3": ("no_rope_layers", "no_rope_layer_interval", "layer_types", "tie_word_embeddings", "rope_theta"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL_DEFAULTS)
def test_what_a_file_leaves_out_is_as_in_transformers(variant: Variant, name: str) -> None:
    """The tiny models have the classes' values for these."""
    whole = models.build(open_model(DATA / name / "hf"))
    made = models.build(variant.open(name, drop=ALL_DEFAULTS[name], style="config.v4.json"))
    assert made.config == whole.config and made.graph == whole.graph


def test_classes_defaults_for_sizes(variant: Variant) -> None:
    drop = ("max_position_embeddings", "rope_parameters", "rms_norm_eps", "logit_scale")
    expected = {
        "command-r": (8192, 500000.0),
        "cohere2": (8192, 10000.0),
        "gptneox": (2048, 10000.0),
        "falcon-7b": (2048, 10000.0),
        "starcoder2": (4096, 10000.0),
        "smollm3": (32768, 2e6),
    }
    for name, (context, theta) in expected.items():
        (variant.folder / name).mkdir()
        file = Variant(variant.folder / name).open(name, drop=drop)
        config = models.build(file).config
        assert (config.n_ctx_train, config.rope.theta) == (context, theta)
        assert file.metadata.get(f"{config.architecture}.logit_scale", 0.0625) == 0.0625


def test_the_context_of_command_r_is_what_the_model_was_trained_for(variant: Variant) -> None:
    assert models.build(variant.open("command-r", model_max_length=4096)).config.n_ctx_train == 4096


def test_windows_and_rope_of_cohere2_by_its_pattern(variant: Variant) -> None:
    for given in (
        {"layer_types": None, "sliding_window_pattern": 2},
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ):
        graph = models.build(variant.open("cohere2", **given)).graph
        assert set(graph.windows.values()) == {32, None}
        turned = {op.layer for op in graph.nodes if op.op == "rope"}
        assert turned == {0, 2}


def test_starcoder2_windows(variant: Variant) -> None:
    assert set(models.build(variant.open("starcoder2", sliding_window=8)).graph.windows.values()) == {8}
    assert set(models.build(variant.open("starcoder2")).graph.windows.values()) == {None}


@pytest.mark.parametrize("name", ["gelu_fast", "gelu_new", "gelu_pytorch_tanh"])
def test_gptneox_by_its_activation(variant: Variant, name: str) -> None:
    def kinds(file: ModelFile) -> set[str]:
        return {op.op for op in models.build(file).graph.nodes if "gelu" in op.op}

    assert kinds(variant.open("gptneox", hidden_act=name)) == {"gelu_tanh"}
    assert kinds(variant.open("gptneox")) == {"gelu"}


def test_gptneox_files_as_they_were_published(variant: Variant) -> None:
    """With the causal mask, and the head under its older name."""
    masks: dict[str, Any] = {}
    for i in range(2):
        masks[f"gpt_neox.layers.{i}.attention.bias"] = np.ones((1, 1, 8, 8), bool)
        masks[f"gpt_neox.layers.{i}.attention.masked_bias"] = np.full((), -1e9, np.float32)
        masks[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    variant.rewrite("gptneox", **masks, **{"lm_head.weight": "embed_out.weight"})
    file = variant.open("gptneox")
    models.build(file)
    assert file.tensors.keys() == open_model(DATA / "gptneox" / "hf").tensors.keys()


def test_falcon_with_the_new_heads_and_one_norm(variant: Variant) -> None:
    """As Falcon 11B."""
    tensors = safetensors.numpy.load_file(DATA / "falcon-40b" / "hf" / "model.safetensors")
    kept = {k.replace("ln_mlp", "input_layernorm"): v for k, v in tensors.items() if ".ln_attn." not in k}
    safetensors.numpy.save_file(kept, variant.folder / "model.safetensors")
    file = variant.open("falcon-40b", num_ln_in_parallel_attn=1)
    built = models.build(file)
    assert "blk.0.attn_norm_2.weight" not in file.tensors
    assert len([op for op in built.graph.nodes if op.op == "layer_norm"]) == 3


def test_heads_of_a_fused_matrix() -> None:
    values = {"hidden_size": 12, "num_attention_heads": 6}
    config = HfConfig(Path("config.json"), values, {})
    labels = np.array(
        [f"{kind}{i}{part}" for i in range(3) for kind in ("q0", "q1", "k", "v") for part in "ab"]
    )
    made = np.concatenate([labels[a:b] for a, b in grouped_heads(config, 3)]).tolist()
    queries = [f"{q}{i}{part}" for i in range(3) for q in ("q0", "q1") for part in "ab"]
    others = [f"{kind}{i}{part}" for kind in "kv" for i in range(3) for part in "ab"]
    assert made == queries + others


@pytest.mark.parametrize("shape", [(), (0,), (0, 64), (191, 64), (193, 64)])
def test_a_fused_matrix_of_another_shape_is_refused(variant: Variant, shape: tuple[int, ...]) -> None:
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    variant.rewrite("gptneox", **{name: np.zeros(shape, np.float16)})
    with pytest.raises(ModelFileError) as caught:
        models.build(variant.open("gptneox"))
    assert caught.value.field == f"tensor {name}" and len(str(caught.value)) < 300
