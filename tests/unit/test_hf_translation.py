"""What a config.json and the names in a checkpoint mean: keys, tensors, and what is refused rather than guessed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from wgllm import models
from wgllm.errors import ModelFileError, ModelNotFoundError
from wgllm.formats.model_file import ModelFile
from wgllm.models import HF_FAMILIES
from wgllm.models.hf_family import EXPERT_KEYS, LLAMA_TENSORS, HfConfig, HfFamily, Rows, Transposed
from wgllm.models.hugging_face import open_hugging_face
from wgllm.models.opening import open_model

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "vocab_size": 10,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (10, 8),
    "model.norm.weight": (8,),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
}


def numbers(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Checkpoint:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(
        self,
        shapes: dict[str, tuple[int, ...]] | None = None,
        families: dict[str, HfFamily] | None = None,
        drop: tuple[str, ...] = (),
        **config: Any,
    ) -> ModelFile:
        values = {k: v for k, v in (CONFIG | config).items() if k not in drop}
        (self.folder / "config.json").write_text(json.dumps(values))
        self.arrays = numbers(SHAPES if shapes is None else shapes)
        safetensors.numpy.save_file(self.arrays, self.folder / "model.safetensors")
        return open_hugging_face(self.folder, HF_FAMILIES if families is None else families)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path)


def test_a_model_is_built_from_it(checkpoint: Checkpoint) -> None:
    file = checkpoint.open()
    built = models.build(file)
    assert (built.config.d_model, built.config.head_dim, built.config.rope.interleaved) == (8, 4, False)
    assert file.path == checkpoint.folder and file.architecture == "llama"


def test_a_directory_may_be_named_by_a_dot(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.open()
    monkeypatch.chdir(checkpoint.folder)
    assert open_model(".").metadata["general.name"] == checkpoint.folder.name


# Rope

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16}
LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}


@pytest.mark.parametrize("style", ["rope_scaling", "rope_scaling with type", "rope_parameters"])
@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("default", {}, {}),
        ("linear", {"factor": 4.0}, {"scaling.type": "linear", "scaling.factor": 4.0}),
        ("dynamic", {"factor": 2.0}, {"scaling.type": "dynamic"}),
        (
            "yarn",
            YARN,
            {
                "scaling.type": "yarn",
                "scaling.factor": 4.0,
                "scaling.original_context_length": 16,
                "scaling.yarn_beta_fast": 16.0,
            },
        ),
        (
            "yarn",
            YARN | {"attention_factor": 1.0},
            {
                "scaling.type": "yarn",
                "scaling.factor": 4.0,
                "scaling.original_context_length": 16,
                "scaling.yarn_beta_fast": 16.0,
                "scaling.attn_factor": 1 / (0.1 * math.log(4) + 1),
            },
        ),
        (
            "longrope",
            LONG | {"original_max_position_embeddings": 16},
            {
                "scaling.original_context_length": 16,
                "scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(16)),
            },
        ),
        ("llama3", LLAMA3, {}),
    ],
)
def test_rope_in_both_styles(
    checkpoint: Checkpoint, style: str, kind: str, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    if style == "rope_parameters":
        config: dict[str, Any] = {"rope_parameters": settings | {"rope_type": kind, "rope_theta": 5e5}}
    else:
        named = {"type" if "type" in style[5:] and "with" in style else "rope_type": kind}
        config = {"rope_theta": 5e5, "rope_scaling": settings | named if kind != "default" else None}
    file = checkpoint.open(**config)
    found = {
        k.removeprefix("llama.rope."): v for k, v in file.metadata.items() if k.startswith("llama.rope.")
    }
    assert found == pytest.approx({"freq_base": 5e5} | expected)
    assert ("rope_freqs.weight" in file.tensors) == (kind == "llama3")
    if kind == "longrope":
        assert file.tensors["rope_factors_long.weight"].array().tolist() == [2.0, 4.0]
        assert file.tensors["rope_factors_short.weight"].array().tolist() == [1.0, 1.5]


@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_scaling_that_was_added_to_a_new_config_counts(checkpoint: Checkpoint, name: str) -> None:
    plain = {"rope_type": "default", "rope_theta": 5e5}
    file = checkpoint.open(rope_parameters=plain, rope_scaling={name: "linear", "factor": 2.0})
    assert file.metadata["llama.rope.scaling.factor"] == 2.0
    assert file.metadata["llama.rope.freq_base"] == 5e5


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_scaling": {"rope_type": "magic"}}, "rope_type: 'magic' is not supported for llama"),
        ({"rope_scaling": 7}, "rope_scaling: should be an object"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, "should be a name"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor: missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "makes no sense"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "should be a number"),
        (
            {"rope_scaling": LLAMA3 | {"rope_type": "llama3", "high_freq_factor": 1.0}},
            "not above the low one",
        ),
        ({"rope_scaling": LONG | {"rope_type": "longrope", "long_factor": [1.0]}}, "should be 2 numbers"),
        (
            {"rope_scaling": YARN | {"rope_type": "yarn", "truncate": False}},
            "truncate: false is not supported",
        ),
        ({"partial_rotary_factor": 1.5}, "not between 0 and 1"),
    ],
)
def test_rope_that_is_not_understood_is_refused(
    checkpoint: Checkpoint, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelFileError, match=words) as caught:
        checkpoint.open(**config)
    assert caught.value.path.name == "config.json"


def test_a_part_of_the_head_may_turn(checkpoint: Checkpoint) -> None:
    assert checkpoint.open(partial_rotary_factor=0.5).metadata["llama.rope.dimension_count"] == 2
    # A family may have a share of its own, for files that say nothing.
    glm = checkpoint.open({"lm_head.weight": (10, 8)}, model_type="glm4", head_dim=4)
    assert glm.metadata["glm4.rope.dimension_count"] == 2 and glm.conventions.rope_interleaved
    parameters = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
    assert checkpoint.open(rope_parameters=parameters).metadata["llama.rope.dimension_count"] == 2


# The configuration


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        ({"model_type": "bert"}, "model_type", "'bert' is not supported"),
        ({"model_type": None}, "model_type", "missing"),
        ({"hidden_act": "relu"}, "hidden_act", "'relu' is not supported"),
        ({"hidden_size": "8"}, "hidden_size", "should be a whole number"),
        ({"hidden_size": 0}, "hidden_size", "should be a whole number"),
        ({"hidden_size": True}, "hidden_size", "should be a whole number"),
        ({"num_hidden_layers": 1 << 40}, "block_count", "outside"),
        ({"num_attention_heads": None}, "num_attention_heads", "missing"),
        ({"rms_norm_eps": "x"}, "layer_norm_rms_epsilon", "should be a number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "true or false"),
        ({"tie_word_embeddings": False}, "lm_head.weight", "missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config", "gptq is not supported"),
        ({"intermediate_size": {"a": 1}}, "intermediate_size", "should be a number or a text"),
    ],
)
def test_what_makes_no_sense_is_refused(
    checkpoint: Checkpoint, config: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ModelFileError, match=words) as caught:
        models.build(checkpoint.open(**config))
    assert field in caught.value.field


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": NaN}', '{"a": 1, "a": 2}', "[" * 100000, "\0"]
)
def test_a_config_that_is_none_is_refused(checkpoint: Checkpoint, text: str) -> None:
    checkpoint.open()
    (checkpoint.folder / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.json: file: "):
        open_model(checkpoint.folder)


def test_weights_without_a_config_mean_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.open()
    (checkpoint.folder / "config.json").unlink()
    for path in (checkpoint.folder, checkpoint.folder / "model.safetensors"):
        with pytest.raises(ModelFileError, match=r"config\.json: is missing"):
            open_model(path)
    with pytest.raises(ModelNotFoundError):
        open_model(tmp_path / "no" / "model.safetensors")


def test_what_a_directory_means(checkpoint: Checkpoint) -> None:
    checkpoint.open()
    folder = checkpoint.folder
    (folder / "a-00001-of-00002.gguf").touch()
    (folder / "a-00002-of-00002.gguf").touch()
    assert open_model(folder).path == folder
    (folder / "model.safetensors").unlink()  # a repository of GGUF files may have a config.json
    with pytest.raises(ModelFileError, match=r"a-00001-of-00002\.gguf: file: the file is empty"):
        open_model(folder)
    (folder / "b.gguf").touch()
    with pytest.raises(ModelFileError, match=r"several models; name one of a-00001-of-00002\.gguf, b\.gguf"):
        open_model(folder)
    for path in folder.glob("*.gguf"):
        path.unlink()
    with pytest.raises(ModelNotFoundError, match=r"no model\.safetensors"):
        open_model(folder)


def test_defaults_stand_for_what_is_absent_but_not_for_null(checkpoint: Checkpoint) -> None:
    window = "llama.attention.sliding_window"
    assert checkpoint.open(model_type="mistral").metadata[window] == 4096
    assert window not in checkpoint.open(model_type="mistral", sliding_window=None).metadata
    assert window not in checkpoint.open(sliding_window=32).metadata  # Llama's has no meaning
    kinds = ["full_attention"]
    assert window not in checkpoint.open(model_type="mistral", layer_types=kinds).metadata


def test_a_window_that_the_graph_does_not_know_is_refused(checkpoint: Checkpoint) -> None:
    biased = {
        name.replace("weight", "bias"): s[:1] for name, s in SHAPES.items() if name[-13:-10] in "q_pk_pv_p"
    }
    qwen: dict[str, Any] = {"model_type": "qwen2", "sliding_window": 32, "shapes": SHAPES | biased}
    for harmless in ({}, {"use_sliding_window": True}, {"use_sliding_window": True, "max_window_layers": 1}):
        checkpoint.open(**qwen, **harmless)
    for config in (
        {"use_sliding_window": True, "max_window_layers": 0},
        {"use_sliding_window": True, "layer_types": ["sliding_attention"]},
    ):
        with pytest.raises(ModelFileError, match="a window of 32 tokens is not supported"):
            checkpoint.open(**qwen, **config)
    with pytest.raises(ModelFileError, match="'linear_attention' is not supported"):
        checkpoint.open(**qwen, use_sliding_window=True, layer_types=["linear_attention"])


def test_a_nested_text_config_goes_before_what_is_beside_it(checkpoint: Checkpoint) -> None:
    sandwich = {
        "model.layers.0.pre_feedforward_layernorm.weight": (8,),
        "model.layers.0.post_feedforward_layernorm.weight": (8,),
        "model.layers.0.self_attn.q_norm.weight": (256,),
        "model.layers.0.self_attn.k_norm.weight": (256,),
        "model.layers.0.self_attn.q_proj.weight": (8 * 256, 8),
        "model.layers.0.self_attn.k_proj.weight": (4 * 256, 8),
        "model.layers.0.self_attn.v_proj.weight": (4 * 256, 8),
        "model.layers.0.self_attn.o_proj.weight": (8, 8 * 256),
    }
    text = {"model_type": "gemma3_text", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"sliding_window": 32, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    vision = {"vision_tower.x.weight": (3, 3), "multi_modal_projector.y.weight": (3, 3)}
    for prefix in ("language_model.", "model.language_"):
        shapes = {prefix + name: s for name, s in (SHAPES | sandwich).items()} | vision
        file = checkpoint.open(
            shapes, model_type="gemma3", text_config=text, hidden_size=99,
            drop=("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings"),
        )  # fmt: skip
        config = models.build(file).config
        # What the text_config leaves out are the class's defaults.
        assert (config.d_model, config.n_heads, config.n_kv_heads, config.head_dim) == (8, 8, 4, 256)
        assert (config.rope.theta, config.rope.scale, config.norm_offset) == (1e6, 1 / 8, 1.0)
        assert file.metadata["gemma3.attention.sliding_window"] == 32


# Tensors


def test_a_tensor_that_nobody_knows_is_refused(checkpoint: Checkpoint) -> None:
    for name in (
        "model.layers.0.self_attn.magic.weight",
        "score.weight",
        "model.layers.00.input_layernorm.weight",
    ):
        with pytest.raises(ModelFileError, match="does not know what llama does with it"):
            checkpoint.open(SHAPES | {name: (3,)})
    with pytest.raises(ModelFileError, match="there are 1 layers"):
        checkpoint.open(SHAPES | {"model.layers.1.input_layernorm.weight": (8,)})
    checkpoint.open(SHAPES | {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)})
    with pytest.raises(ModelFileError, match=r"its shape is \(9, 8\), expected \(8, 8\)"):
        models.build(checkpoint.open(SHAPES | {"model.layers.0.self_attn.q_proj.weight": (9, 8)}))


def test_a_tied_head_is_the_embedding_even_where_the_file_has_one(checkpoint: Checkpoint) -> None:
    shapes = SHAPES | {"lm_head.weight": (10, 8)}
    assert "output.weight" not in checkpoint.open(shapes).tensors
    assert "output.weight" in checkpoint.open(shapes, tie_word_embeddings=False).tensors
    assert "output.weight" in checkpoint.open(shapes, drop=("tie_word_embeddings",)).tensors


def test_a_type_is_refused_only_where_it_is_used(checkpoint: Checkpoint) -> None:
    checkpoint.open()
    path = checkpoint.folder / "model.safetensors"
    mask = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float64)}
    safetensors.numpy.save_file(checkpoint.arrays | mask, path)
    open_model(checkpoint.folder)
    safetensors.numpy.save_file(checkpoint.arrays | {"model.norm.weight": np.zeros(8, np.float64)}, path)
    with pytest.raises(ModelFileError, match=r"tensor model\.norm\.weight: its type F64 is not supported"):
        open_model(checkpoint.folder)


def interleaved(config: HfConfig) -> list[tuple[int, int]]:
    """GPT-NeoX's heads have q, k, v each: all q, then all k, then all v."""
    d, n = config.head_dim, config.n_heads
    return [((3 * head + part) * d, (3 * head + part + 1) * d) for part in range(3) for head in range(n)]


ODD = HfFamily(
    model_types=("odd",),
    architecture="odd",
    tensors=LLAMA_TENSORS
    | {
        "model.layers.{i}.qkv": Rows("blk.{i}.attn_qkv", interleaved),
        "model.layers.{i}.c_fc": Transposed("blk.{i}.ffn_up"),
        "model.layers.{i}.experts.{e}.down_proj": "blk.{i}.ffn_down_exps",
        "model.layers.{i}.gate_up": (
            Rows("blk.{i}.gate_half", lambda c: [(0, 3)]),
            Rows("blk.{i}.up_half", lambda c: [(3, 6)]),
        ),
        "model.layers.{i}.sinks": "blk.{i}.attn_sinks.weight",
    },
    keys=EXPERT_KEYS | {"attention.layer_norm_rms_epsilon": lambda c: None, "logit_scale": "logit_scale"},
    defaults={"logit_scale": 0.25},
)


def test_what_families_can_declare(checkpoint: Checkpoint) -> None:
    experts = {f"model.layers.0.experts.{e}.down_proj.weight": (4, 2) for e in range(12)}
    others = {name: shape for name, shape in SHAPES.items() if "up_proj" not in name}
    shapes = others | experts | {
        "model.layers.0.qkv.weight": (24, 8),
        "model.layers.0.qkv.bias": (24,),
        "model.layers.0.c_fc.weight": (8, 16),
        "model.layers.0.c_fc.bias": (16,),
        "model.layers.0.gate_up.weight": (6, 8),
        "model.layers.0.sinks": (2,),
    }  # fmt: skip
    file = checkpoint.open(shapes, {"odd": ODD}, model_type="odd", num_experts=12, num_experts_per_tok=2)
    found = {name: view.array() for name, view in file.tensors.items()}
    mine = {name.removeprefix("model.layers.0."): a for name, a in checkpoint.arrays.items()}
    q, k, v = mine["qkv.weight"].reshape(2, 3, 4, 8).swapaxes(0, 1).reshape(3, 8, 8)
    assert np.array_equal(found["blk.0.attn_qkv.weight"], np.concatenate([q, k, v]))
    assert np.array_equal(
        found["blk.0.attn_qkv.bias"], mine["qkv.bias"].reshape(2, 3, 4).swapaxes(0, 1).reshape(-1)
    )
    assert np.array_equal(found["blk.0.ffn_up.weight"], mine["c_fc.weight"].T)
    assert np.array_equal(found["blk.0.ffn_up.bias"], mine["c_fc.bias"])
    expected = np.stack([mine[f"experts.{e}.down_proj.weight"] for e in range(12)])
    assert np.array_equal(found["blk.0.ffn_down_exps.weight"], expected)
    assert np.array_equal(found["blk.0.gate_half.weight"], mine["gate_up.weight"][:3])
    assert np.array_equal(found["blk.0.up_half.weight"], mine["gate_up.weight"][3:])
    assert np.array_equal(found["blk.0.attn_sinks.weight"], mine["sinks"])
    assert file.metadata["odd.expert_count"] == 12 and file.metadata["odd.logit_scale"] == 0.25
    assert "odd.attention.layer_norm_rms_epsilon" not in file.metadata
    with pytest.raises(ModelFileError, match="number 3 of its parts is missing"):
        shapes.pop("model.layers.0.experts.3.down_proj.weight")
        checkpoint.open(shapes, {"odd": ODD}, model_type="odd")
    with pytest.raises(ModelFileError, match="differ in shape"):
        checkpoint.open(
            shapes | {"model.layers.0.experts.3.down_proj.weight": (2, 4)}, {"odd": ODD}, model_type="odd"
        )
    with pytest.raises(ModelFileError, match="not within 20"):
        checkpoint.open({"model.layers.0.qkv.weight": (20, 8)}, {"odd": ODD}, model_type="odd")
    with pytest.raises(ModelFileError, match="another tensor is"):
        twice = {"model.layers.0.c_fc.weight": (8, 16), "model.layers.0.mlp.up_proj.weight": (16, 8)}
        checkpoint.open(twice, {"odd": ODD}, model_type="odd")


def test_every_declared_family_is_one_that_runs() -> None:
    for family in HF_FAMILIES.values():
        assert family.architecture in models.FAMILIES
