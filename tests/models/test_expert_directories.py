"""Mixtures of experts from Hugging Face directories: one by one or stacked, and what config.json says of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.numpy

from tests import tolerances
from tests.models.test_hugging_face import worst_logit
from tests.tiny import CTX, DATA, DIRECTORIES, Tiny, load_on, load_program, run_chunks, tiny
from wgllm import models
from wgllm.backends.base import Array, Ints, LoadOptions, Program, Step
from wgllm.backends.device import Device
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.cache import cell_counts
from wgllm.errors import ModelFileError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import TensorView
from wgllm.formats.views import QuantizedView, StackedView
from wgllm.graph import Node
from wgllm.models.opening import open_model

NAMES = ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe"]
Arrays = Mapping[str, np.ndarray[Any, Any]]


def worst(program: Program, model: Tiny) -> float:
    far = worst_logit(program, model, 64)
    program.close()
    return far


def directory(name: str) -> Tiny:
    return next(m for m in DIRECTORIES if m.id == f"{name}.hf")


def copy_of(
    name: str, folder: Path, *, drop: tuple[str, ...] = (), older: bool = False, **config: Any
) -> Path:
    """The directory of a tiny model with another config.json."""
    path = folder / name
    shutil.copytree(DATA / name / "hf", path)
    values = json.loads((path / ("config.v4.json" if older else "config.json")).read_text())
    values = {k: v for k, v in (values | config).items() if k not in drop}
    (path / "config.json").write_text(json.dumps(values))
    return path


def stacked(tensors: Arrays) -> Arrays:
    """As transformers 5 saves a model with ``save_original_format=False``."""
    made: dict[str, Any] = {}
    experts: dict[str, dict[int, Any]] = {}
    parts = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for name, values in tensors.items():
        new = name.replace(".block_sparse_moe.", ".mlp.")
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", new)
        if match is None:
            made[new] = values
        else:
            experts.setdefault(f"{match[1]}.{parts.get(match[3], match[3])}", {})[int(match[2])] = values
    stacks = {name: np.stack([found[i] for i in range(len(found))]) for name, found in experts.items()}
    for name, values in stacks.items():
        if name.endswith("down_proj"):
            made[name] = values
        elif name.endswith("gate_proj"):
            up = stacks[name.replace("gate_proj", "up_proj")]
            made[name.replace("gate_proj", "gate_up_proj")] = np.concatenate([values, up], 1)
    return made


def rewrite(path: Path, change: Callable[[Arrays], Arrays]) -> None:
    file = path / "model.safetensors"
    made = change(safetensors.numpy.load_file(file))
    file.unlink()
    safetensors.numpy.save_file(dict(made), file)


# Directories


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_experts_in_stacks_are_the_same_tensors(name: str, older: bool, tmp_path: Path) -> None:
    model, path = directory(name), copy_of(name, tmp_path, older=older)
    rewrite(path, stacked)
    assert "model.layers.0.mlp.experts.gate_up_proj" in safetensors.numpy.load_file(
        path / "model.safetensors"
    )
    assert worst(load_program(path), model) < model.tolerance
    made, expected = open_model(path).tensors, open_model(model.path).tensors
    assert made.keys() == expected.keys()
    for key, view in expected.items():
        assert made[key].shape == view.shape and np.array_equal(made[key].data, view.data)


@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_experts_in_stacks_run_on_a_device(own_device: Device, name: str, tmp_path: Path) -> None:
    path = copy_of(name, tmp_path)
    rewrite(path, stacked)
    assert worst(load_on(WebGpuExecutor(own_device), path), directory(name)) < tolerances.WEBGPU_TINY


def test_an_odd_stack_and_one_that_is_there_twice_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    path = copy_of("olmoe", tmp_path)
    rewrite(path, lambda tensors: {**stacked(tensors), name: np.zeros((10, 63, 64), np.float16)})
    with pytest.raises(ModelFileError, match=rf"{name}.*2 equal shares"):
        open_model(path)
    shutil.copy(directory("olmoe").path / "model.safetensors", path)
    rewrite(path, lambda tensors: {**stacked(tensors), **tensors})
    with pytest.raises(ModelFileError, match="is there whole and in parts"):
        open_model(path)


def with_a_dense_layer(folder: Path, **config: Any) -> Path:
    """qwen3_moe-k as a directory: its first layer has no experts."""
    file = open_gguf(tiny("qwen3_moe-k.q4_k").path)
    folder.mkdir()
    names = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm", "ffn_gate_inp": "mlp.gate", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for key, view in file.tensors.items():
        *layer, stem, _ = key.split(".")
        begin = f"model.layers.{layer[1]}." if layer else ""
        if stem.endswith("_exps"):
            part = names[stem.removesuffix("_exps")].removeprefix("mlp.")
            for e, values in enumerate(view.array()):
                arrays[f"{begin}mlp.experts.{e}.{part}.weight"] = values
        else:
            arrays[f"{begin}{names[stem]}.weight"] = view.array()
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    values = {
        "model_type": "qwen3_moe", "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CTX, "rms_norm_eps": 1e-5,
        "head_dim": 16, "intermediate_size": 64, "moe_intermediate_size": 256, "num_experts": 3,
        "num_experts_per_tok": 2, "norm_topk_prob": True, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


@pytest.mark.parametrize("config", [{"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}])
def test_layers_without_experts(config: dict[str, Any], tmp_path: Path) -> None:
    path = with_a_dense_layer(tmp_path / "m", **config)
    model = tiny("qwen3_moe-k.q4_k")
    assert worst(load_program(path), model) < model.tolerance


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "layer 0 should have experts"),
        ({"mlp_only_layers": [0, 1]}, "layer 1 should have no experts"),
        ({"mlp_only_layers": 0.5}, "mlp_only_layers: should be a list"),
        ({"mlp_only_layers": ["0"]}, "mlp_only_layers: should be a list"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step: 0 should be"),
    ],
)
def test_layers_that_are_not_what_config_json_says_are_refused(
    config: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=problem):
        models.build(open_model(with_a_dense_layer(tmp_path / "m", **config)))


@pytest.mark.parametrize(
    ("name", "config", "problem"),
    [
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv: 8.0"),
        ("olmoe", {"clip_qkv": 0.0}, "clip_qkv: 0.0"),
        ("olmoe", {"attention_bias": True}, "attention_bias: True"),
        ("olmoe", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ("olmoe", {"norm_topk_prob": 1}, "norm_topk_prob: 1 should be true or false"),
        ("olmoe", {"num_experts": 9}, r"ffn_gate_inp\.weight: its shape"),
        ("olmoe", {"num_experts_per_tok": 11}, "expert_used_count"),
        ("olmoe", {"intermediate_size": 64}, "its shape is"),
        ("qwen3_moe", {"attention_bias": True}, "attention_bias: True"),
        ("qwen3_moe", {"moe_intermediate_size": 64}, "its shape is"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 64}, "sliding_window: a window of 64"),
        (
            "qwen3_moe",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 28},
            "sliding_window: a window of 64",
        ),
        ("qwen2_moe", {"qkv_bias": False}, "qkv_bias: False"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 64}, "shexp.weight: its shape"),
        (
            "qwen2_moe",
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": None},
            "sliding_window: a window of 64",
        ),
        ("mixtral", {"hidden_act": "relu"}, "hidden_act: 'relu'"),
        ("mixtral", {"num_local_experts": 8}, r"ffn_gate_inp\.weight: its shape"),
    ],
)
def test_other_mathematics_is_refused_by_name(
    name: str, config: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=problem):
        models.build(open_model(copy_of(name, tmp_path, **config)))


def test_windows_of_mixtral_count(tmp_path: Path) -> None:
    built = models.build(open_model(copy_of("mixtral", tmp_path, sliding_window=64)))
    assert set(built.graph.windows.values()) == {64}


@pytest.mark.parametrize("name", NAMES[1:])
def test_weights_make_one_together_only_where_config_json_says_so(name: str, tmp_path: Path) -> None:
    def normalized(folder: str, **change: Any) -> set[object]:
        graph = models.build(open_model(copy_of(name, tmp_path / folder, **change))).graph
        return {n.attrs["normalized"] for n in graph.nodes if n.op == "top_experts"}

    assert normalized("yes", norm_topk_prob=True) == {True}
    assert normalized("no", norm_topk_prob=False) == {False}
    assert normalized("silent", drop=("norm_topk_prob",)) == {False}


def test_what_config_json_leaves_out_is_what_transformers_takes_it_for(tmp_path: Path) -> None:
    drop = ("num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    known = {
        "mixtral": (8, 2, None),
        "qwen3_moe": (128, 8, 768),
        "qwen2_moe": (60, 4, 1408),
        "olmoe": (64, 8, None),
    }
    for name, expected in known.items():
        file = open_model(copy_of(name, tmp_path, drop=drop))
        keys = ("expert_count", "expert_used_count", "expert_feed_forward_length")
        assert tuple(file.metadata.get(f"{file.architecture}.{key}") for key in keys) == expected
    assert (
        open_model(copy_of("mixtral", tmp_path / "r", drop=("rope_parameters",))).metadata[
            "llama.rope.freq_base"
        ]
        == 1e6
    )


class Watched(TensorView):
    """One that notes that it was read."""

    read: ClassVar[set[str]] = set()

    def blocks(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        self.read.add(self.name)
        return super().blocks(start, stop)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_numpy_reads_only_the_experts_that_are_chosen(
    rows: int, quantize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no memory for their float32 form; what is quantized as it is read is read once, at loading."""
    monkeypatch.setattr(Watched, "read", set())
    built = models.build(open_model(directory("olmoe").path, quantize=quantize))
    watched, number = dict(built.weights), re.compile(r"blk\.(\d+)\..*_exps")
    for name, view in built.weights.items():
        if number.match(name):
            inner = view._source if isinstance(view, QuantizedView) else view
            assert isinstance(inner, StackedView) and len(inner.parts) == 10
            parts = [
                Watched(f"{name}.{e}", p.shape, p.format, p.data, p.forget) for e, p in enumerate(inner.parts)
            ]
            stack = StackedView(name, parts)
            watched[name] = QuantizedView(stack, view.format) if quantize else stack
    options = LoadOptions(cell_counts(built.graph.windows, CTX, 64, 1), memory=0)
    program = NumpyExecutor().load(built.graph, watched, options)
    assert len(Watched.read) == (60 if quantize else 0)
    Watched.read.clear()
    chosen: set[str] = set()

    def note(node: Node, made: Mapping[str, Array | Ints]) -> None:
        if node.op == "top_experts":
            ids = set(made[node.outputs[0]].reshape(-1).tolist())
            chosen.update(
                f"blk.{node.layer}.ffn_{p}_exps.weight.{e}" for e in ids for p in ("gate", "up", "down")
            )

    program.run(Step.of([7] * rows, 0, out_rows=[rows - 1]).inputs(), trace=note)
    assert 24 <= len(chosen) < 60
    assert Watched.read == (set() if quantize else chosen)


def test_a_directory_that_is_quantized_is_the_quantized_file() -> None:
    """As llama.cpp's quantizer makes it of the same weights."""
    made = open_model(directory("qwen3_moe").path, quantize="q8_0").tensors
    file = open_gguf(tiny("qwen3_moe.q8_0").path).tensors
    for name in [n for n in file if "_exps" in n]:
        assert made[name].shape == file[name].shape and np.array_equal(made[name].data, file[name].data)
    assert sum("_exps" in n for n in file) == 6
    assert made["blk.0.ffn_gate_inp.weight"].format.name == "F32"


@pytest.mark.parametrize("form", ["one by one", "stacked"])
def test_experts_that_are_quantized_run_alike_on_both_backends(
    own_device: Device, form: str, tmp_path: Path
) -> None:
    path = copy_of("qwen2_moe", tmp_path)
    if form == "stacked":
        rewrite(path, stacked)
    ids = tiny("qwen2_moe.f16").cases()[1]["ids"]
    program = load_on(WebGpuExecutor(own_device), path, quantize="q8_0")
    made = run_chunks(program, ids, 64)
    program.close()
    for memory in (0, None):
        expected = run_chunks(load_program(path, quantize="q8_0", memory=memory), ids, 64)
        assert np.abs(made - expected).max() < tolerances.WEBGPU_TINY
    graph = models.build(open_model(path, quantize="q8_0")).graph
    for tensor in graph.of_kind("weight"):
        kept = len(tensor.shape) == 1 or "ffn_gate_inp" in tensor.name
        assert tensor.dtype == ("F16" if kept else "Q8_0"), tensor.name
