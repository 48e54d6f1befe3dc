"""What family files read from real files' metadata, beyond what the reference models have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import CTX, DATA, run_chunks, tiny
from tests.tolerances import NUMPY_TINY
from wgllm import models
from wgllm.backends.base import LoadOptions
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.cache import cell_counts
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import ModelFile, TensorView
from wgllm.graph import Node
from wgllm.quant import format_by_name


def opened(name: str, metadata: Mapping[str, Any]) -> ModelFile:
    file = open_gguf(tiny(name).path)
    return replace(file, metadata={k: v for k, v in {**file.metadata, **metadata}.items() if v is not None})


def nodes(file: ModelFile, op: str) -> list[Node]:
    return [n for n in models.build(file).graph.nodes if n.op == op]


def windows(file: ModelFile) -> list[int | None]:
    return [n.attrs["window"] for n in nodes(file, "mask")]


def logits(file: ModelFile, ids: list[int], chunk: int) -> np.ndarray[Any, Any]:
    built = models.build(file)
    sizes = cell_counts(built.graph.windows, CTX, chunk, 1)
    return run_chunks(NumpyExecutor().load(built.graph, file.tensors, LoadOptions(sizes)), ids, chunk)


@pytest.mark.parametrize("chunk", [7, 256])
def test_mistrals_window_gives_the_references_logits(chunk: int) -> None:
    file = opened("mistral.f32", {"llama.attention.sliding_window": 32})
    expected: Path = DATA / "mistral" / "expected.json"
    for case in json.loads(expected.read_text(encoding="utf-8"))["cases"]:
        first, reference = case["logits_start"], np.array(case["logits"], np.float32)
        made = logits(file, case["ids"], chunk)[first : first + len(reference)]
        assert np.abs(made - reference).max() < NUMPY_TINY


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({}, 1.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 0.25),
        ({"rope.scaling.factor": 4.0}, 0.25),  # linear is what is meant
        ({"rope.scale_linear": 2.0}, 0.5),
        ({"rope.scaling.factor": 0.0}, 1.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 1.0),
    ],
)
def test_linear_rope_scaling_in_all_its_spellings(keys: Mapping[str, Any], scale: float) -> None:
    file = opened("llama-tied.f32", {f"llama.{k}": v for k, v in keys.items()})
    assert {n.attrs["scale"] for n in nodes(file, "rope")} == {scale}


def test_a_scaled_position_turns_as_far_as_the_position_times_the_scale() -> None:
    from wgllm.backends.numpy import RopeTable

    plain, scaled = RopeTable(16, 10000.0, 1.0, None), RopeTable(16, 10000.0, 0.25, None)
    at_8, at_32 = (np.array([p], np.int32) for p in (8, 32))
    assert np.allclose(plain.turns(at_8).pairs, scaled.turns(at_32).pairs, atol=1e-6)


def test_gemma3_scales_the_rope_of_full_layers_only() -> None:
    file = opened("gemma3.f32", {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0})
    ropes = nodes(file, "rope")
    by_window = {
        (n.attrs["theta"], n.attrs["scale"], windows(file)[n.layer] is None)  # type: ignore[index]
        for n in ropes
    }
    assert by_window == {(10000.0, 1.0, False), (1e6, 0.125, True)}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [32] * 5 + [None]),
        ({"attention.sliding_window_pattern": 3}, [32, 32, None] * 2),
        ({"attention.sliding_window_pattern": [True, False] * 3}, [32, None] * 3),
        ({"attention.sliding_window_pattern": 1}, [None] * 6),
        ({"attention.sliding_window": None}, [None] * 6),
        ({"attention.sliding_window": 0}, [None] * 6),
    ],
)
def test_gemma3_windows_as_files_write_them(keys: Mapping[str, Any], expected: list[int | None]) -> None:
    assert windows(opened("gemma3.f32", {f"gemma3.{k}": v for k, v in keys.items()})) == expected


def test_gemma3_rope_bases_under_their_old_names_and_by_default() -> None:
    def thetas(keys: Mapping[str, Any]) -> set[float]:
        none = {"gemma3.rope.freq_base": None, "gemma3.rope.freq_base_swa": None}
        return {n.attrs["theta"] for n in nodes(opened("gemma3.f32", {**none, **keys}), "rope")}

    assert thetas({}) == {1e6, 10000.0}
    assert thetas({"gemma3.rope.global.freq_base": 5e5, "gemma3.rope.local.freq_base": 9e3}) == {5e5, 9e3}


def test_gemma3_27b_scales_its_queries_by_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    def factor() -> float:
        found: float = nodes(opened("gemma3.f32", {}), "scale")[1].attrs["factor"]
        return found

    assert factor() == pytest.approx(32**-0.5)  # the head dimension
    monkeypatch.setattr("wgllm.models.gemma3._LAYERS_27B", 6)
    assert factor() == pytest.approx((64 / 4) ** -0.5)  # d_model / n_heads


def test_a_final_softcap_is_applied_to_the_logits() -> None:
    ids = tiny("gemma3.f32").cases()[0]["ids"]
    plain = logits(opened("gemma3.f32", {}), ids, 8)
    capped = logits(opened("gemma3.f32", {"gemma3.final_logit_softcapping": 3.0}), ids, 8)
    assert np.allclose(capped, 3 * np.tanh(plain / 3), atol=1e-5)
    assert np.abs(capped).max() <= 3 < np.abs(plain).max()


@pytest.mark.parametrize(
    "name", ["attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"]
)
def test_biases_that_a_file_has_are_added(name: str) -> None:
    model = "llama-llama3rope.f32" if name == "output" else "llama-tied.f32"
    file = opened(model, {})
    weight = "output.weight" if name == "output" else f"blk.1.{name}.weight"
    values = np.linspace(-1, 1, file.tensors[weight].shape[0], dtype=np.float32)
    bias = weight.replace("weight", "bias")
    view = TensorView(bias, values.shape, format_by_name("F32"), values.view(np.uint8))
    biased = replace(file, tensors={**file.tensors, bias: view})
    ids = tiny(model).cases()[1]["ids"][:8]
    plain, changed = logits(file, ids, 8), logits(biased, ids, 8)
    if name == "output":
        assert np.allclose(changed, plain + values, atol=1e-5)
    else:
        assert np.abs(changed - plain).max() > 1e-3
        assert [n for n in nodes(biased, "add") if bias in n.inputs]
