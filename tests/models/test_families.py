"""What family files read from real files' metadata, beyond what the reference models have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.tiny import CTX, DATA, run_chunks, tiny
from tests.tolerances import NUMPY_TINY
from wgllm import models
from wgllm.backends.base import LoadOptions
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.cache import cell_counts
from wgllm.errors import ModelFileError, UsageError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import ModelFile, TensorView
from wgllm.graph import Node
from wgllm.models.rope import Yarn
from wgllm.quant import format_by_name


def opened(name: str, metadata: Mapping[str, Any]) -> ModelFile:
    file = open_gguf(tiny(name).path)
    return replace(file, metadata={k: v for k, v in {**file.metadata, **metadata}.items() if v is not None})


def nodes(file: ModelFile, op: str) -> list[Node]:
    return [n for n in models.build(file).graph.nodes if n.op == op]


def windows(file: ModelFile) -> list[int | None]:
    return [n.attrs["window"] for n in nodes(file, "mask")]


def logits(file: ModelFile, ids: list[int], chunk: int, ctx: int = CTX) -> np.ndarray[Any, Any]:
    built = models.build(file, ctx)
    sizes = cell_counts(built.graph.windows, ctx, chunk, 1)
    return run_chunks(NumpyExecutor().load(built.graph, built.weights, LoadOptions(sizes)), ids, chunk)


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.factor", 1e-30),
        ("rope.scaling.factor", 1e30),
        ("rope.freq_base", 1.0),
        ("rope.scaling.yarn_beta_slow", 1e-300),
        ("rope.scaling.yarn_beta_fast", 0.0),
        ("rope.scaling.original_context_length", 0),
        ("rope.scaling.attn_factor", -1.0),
    ],
)
def test_yarn_of_values_that_make_no_sense_is_named(key: str, value: float) -> None:
    with pytest.raises(ModelFileError, match=rf"llama\.{key[:17]}"):
        models.build(opened("llama-yarn.f16", {f"llama.{key}": value}))


def test_an_unknown_kind_of_rope_scaling_is_named() -> None:
    with pytest.raises(
        ModelFileError, match=r"llama.rope.scaling.type: 'ntk' .* \(none, linear, dynamic, yarn and longrope"
    ):
        models.build(opened("llama-tied.f32", {"llama.rope.scaling.type": "ntk"}))


def test_yarn_leaves_fast_pairs_and_divides_slow_ones() -> None:
    # By the paper's ramp: a pair's turns within the context of old are its wave lengths that fit there.
    dim, theta, factor, context = 64, 1e4, 4.0, 4096
    divisors = Yarn(factor, context, 32, 1).divisors(dim, theta)
    turns = context / (2 * math.pi * theta ** (np.arange(0, dim, 2) / dim))
    assert np.all(divisors[turns > 40] == 1) and np.all(divisors[turns < 0.7] == factor)
    assert np.all(np.diff(divisors) >= 0) and np.sum((divisors > 1) & (divisors < factor)) > 5


@pytest.mark.parametrize(
    ("keys", "magnitude"),
    [
        ({}, 1 + 0.1 * math.log(8)),
        ({"rope.scaling.attn_factor": 0.5}, 0.5 * (1 + 0.1 * math.log(8))),
        ({"rope.scaling.factor": 1.0}, 1.0),
        ({"rope.scaling.type": "none"}, 1.0),
    ],
)
def test_yarns_attention_factor(keys: Mapping[str, Any], magnitude: float) -> None:
    file = opened("llama-yarn.f16", {f"llama.{k}": v for k, v in keys.items()})
    made = [n.attrs["magnitude"] for n in nodes(file, "rope")]
    assert made == pytest.approx([magnitude] * 4)


def test_yarn_takes_the_files_own_limits_and_factors() -> None:
    def factors(model: str, keys: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        built = models.build(opened(model, {f"llama.{k}": v for k, v in keys.items()}))
        (name,) = {n.inputs[2] for n in built.graph.nodes if n.op == "rope"}
        return built.weights[name].array()

    plain = factors("llama-yarn.f16", {})
    slower = factors("llama-yarn.f16", {"rope.scaling.yarn_beta_slow": 4.0})
    assert not np.array_equal(plain, slower)
    shorter = factors("llama-yarn.f16", {"rope.scaling.original_context_length": None})
    assert np.array_equal(shorter, Yarn(8.0, CTX, 32, 1).divisors(32, 1e4))
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    own = factors("llama-llama3rope.f32", {})
    both = factors("llama-llama3rope.f32", yarn)
    assert np.array_equal(both, own * Yarn(4.0, CTX, 32, 1).divisors(2 * len(own), 1e4))


@pytest.mark.parametrize("chunk", [7, 256])
def test_frequency_factors_are_chosen_by_the_context(chunk: int) -> None:
    # The original one has 64 positions.
    file = opened("phi3-longrope.f16", {})
    for ctx, name in ((CTX, "expected"), (64, "expected.short")):
        path: Path = DATA / "phi3-longrope" / f"{name}.json"
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            if len(case["ids"]) > ctx:
                continue
            first, reference = case["logits_start"], np.array(case["logits"], np.float32)
            assert np.abs(logits(file, case["ids"], chunk, ctx)[first:] - reference).max() < NUMPY_TINY


def test_a_graph_is_made_anew_where_the_context_asks_for_other_factors() -> None:
    file = opened("phi3-longrope.f16", {})

    def factors(model: models.ModelGraph) -> set[str]:
        return {n.inputs[2] for n in model.graph.nodes if n.op == "rope"}

    long = models.build(file)
    assert factors(long) == {"rope_factors_long.weight"}
    assert models.for_context(long, file, 65) is long
    short = models.for_context(long, file, 64)
    assert factors(short) == {"rope_factors_short.weight"} and short.identity != long.identity
    assert models.for_context(short, file, 1) is short
    with wgllm.load(tiny("phi3-longrope.f16").path, ctx_size=64) as llm:
        assert llm.model is not None and factors(llm.model) == {"rope_factors_short.weight"}


def test_less_context_than_was_aimed_at_takes_the_factors_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgllm.llm.LEAST_CTX", 64)
    monkeypatch.setattr("wgllm.llm.available_memory", lambda: 0)
    with wgllm.load(tiny("phi3-longrope.f16").path, backend="numpy") as llm:
        assert llm.ctx_size == 64 and llm.model is not None and llm.model.ctx == 64
        case = json.loads((DATA / "phi3-longrope" / "expected.short.json").read_text(encoding="utf-8"))[
            "cases"
        ][1]
        made = llm.logits(case["ids"], [-1])[0]
        assert np.abs(made - np.array(case["logits"][-1], np.float32)).max() < NUMPY_TINY


def test_phi3_and_granite_without_frequency_factors_turn_plainly() -> None:
    for name in ("phi3.f32", "granite.f16"):
        assert {len(n.inputs) for n in nodes(opened(name, {}), "rope")} == {2}


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("gemma2.f32", {}, [32, None, 32]),
        ("gemma2.f32", {"attention.sliding_window": None}, [4096, None, 4096]),
        ("cohere2.f16", {}, [32, 32, 32, None]),
        ("cohere2.f16", {"attention.sliding_window_pattern": 2}, [32, None, 32, None]),
        ("phi3-longrope.f16", {}, [100, 100]),
        ("phi3.f32", {}, [None, None]),
        ("olmo2.f32", {}, [None, None]),
        ("olmo2.f32", {"attention.sliding_window": 16}, [16, 16]),  # OLMo 3
        ("starcoder2.f16", {"attention.sliding_window": 16}, [16, 16]),
    ],
)
def test_windows_of_families(name: str, keys: Mapping[str, Any], expected: list[int | None]) -> None:
    file = opened(name, {})
    assert windows(opened(name, {f"{file.architecture}.{k}": v for k, v in keys.items()})) == expected


def test_gemma2s_softcaps_have_defaults_and_can_be_off() -> None:
    def caps(keys: Mapping[str, Any]) -> set[float]:
        return {n.attrs["cap"] for n in nodes(opened("gemma2.f32", keys), "softcap")}

    scores, final = "gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping"
    assert caps({}) == {2.0, 5.0}
    assert caps({scores: None, final: None}) == {50.0, 30.0}
    assert caps({scores: 0.0, final: 0.0}) == set()


def test_layers_without_rope() -> None:
    def turned(file: ModelFile) -> set[int | None]:
        return {n.layer for n in nodes(file, "rope")}

    assert turned(opened("smollm3.f16", {})) == {0, 1, 2}
    assert turned(opened("cohere2.f16", {})) == {0, 1, 2}
    assert turned(opened("granite.f16", {})) == {0, 1}
    assert turned(opened("granite.f16", {"granite.rope.scaling.finetuned": False})) == set()
    assert turned(opened("gpt2.f32", {})) == set()


def test_olmo3_extends_only_layers_that_see_everything() -> None:
    keys = {
        "olmo2.attention.sliding_window": 16, "olmo2.attention.sliding_window_pattern": 2,
        "olmo2.rope.scaling.type": "yarn", "olmo2.rope.scaling.factor": 8.0,
    }  # fmt: skip
    ropes = nodes(opened("olmo2.f32", keys), "rope")
    assert {(n.layer, n.attrs["magnitude"] > 1, len(n.inputs)) for n in ropes} == {
        (0, False, 2),
        (1, True, 3),
    }


def test_granites_factors_are_optional_but_for_the_logits() -> None:
    keys = ("embedding_scale", "residual_scale", "attention.scale")
    file = opened("granite.f16", {f"granite.{k}": None for k in keys})
    assert [n.attrs["factor"] for n in nodes(file, "scale")] == pytest.approx([0.25, 0.25, 1 / 0.8])
    with pytest.raises(ModelFileError, match=r"granite\.logit_scale: missing"):
        models.build(opened("granite.f16", {"granite.logit_scale": None}))


def test_a_model_with_learned_positions_has_no_larger_context() -> None:
    with pytest.raises(
        UsageError, match="a context of 513 tokens is too large: the model has learned 512 positions"
    ):
        wgllm.load(tiny("gpt2.f32").path, ctx_size=513)
    with wgllm.load(tiny("gpt2.f32").path, ctx_size=0) as llm:
        assert llm.ctx_size == 512


@pytest.mark.parametrize(
    ("name", "tensor", "parts"),
    [("phi3.f32", "attn_qkv", 3), ("phi3.f32", "ffn_up", 2), ("gptneox.f16", "attn_qkv", 3)],
)
def test_matrices_in_one_are_rows_of_the_file_and_not_copied(name: str, tensor: str, parts: int) -> None:
    built = models.build(file := opened(name, {}))
    for kind in ("weight", "bias"):
        if (whole := file.tensors.get(f"blk.1.{tensor}.{kind}")) is not None:
            own = [
                v for n, v in built.weights.items() if n.startswith(f"blk.1.{tensor}.") and n.endswith(kind)
            ]
            assert len(own) == parts and all(np.shares_memory(v.data, whole.data) for v in own)
            assert np.array_equal(np.concatenate([v.array() for v in own]), whole.array())


def test_a_matrix_that_is_too_short_for_its_parts_is_named() -> None:
    file = opened("phi3.f32", {"phi3.attention.head_count_kv": 1})
    expected = r"blk\.0\.attn_qkv\.weight: its shape is \(128, 64\), expected \(96, 64\)"
    with pytest.raises(ModelFileError, match=expected):
        models.build(file)


def test_an_architecture_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(
        ModelFileError, match=r"'mamba' is not supported \(these are: cohere2, command-r, falcon, .*"
    ):
        models.build(opened("llama-tied.f32", {"general.architecture": "mamba"}))


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
