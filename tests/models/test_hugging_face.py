"""Model directories of Hugging Face against transformers' logits: every family, old and new config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wgllm
from tests import tolerances
from tests.tiny import DATA, DIRECTORIES, Tiny, load_on, load_program, run_chunks
from wgllm.backends.base import Program
from wgllm.backends.device import Device
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.formats.gguf import open_gguf
from wgllm.models import FAMILIES, HF_FAMILIES, build
from wgllm.models.opening import open_model


def older(model: Tiny, folder: Path) -> Tiny:
    """The same model with the config.json that transformers 4 wrote."""
    path = folder / model.path.name
    shutil.copytree(model.path, path)
    (path / "config.v4.json").replace(path / "config.json")
    return Tiny(path, model.expected)


def worst_logit(program: Program, model: Tiny, chunk: int) -> float:
    worst = 0.0
    for case in model.cases():
        program.truncate(0, 0)
        logits = run_chunks(program, case["ids"], chunk)
        first, expected = case["logits_start"], np.array(case["logits"], np.float32)
        worst = max(worst, float(np.abs(logits[first : first + len(expected)] - expected).max()))
    return worst


WITH_TOKENIZER = [m for m in DIRECTORIES if (m.path / "tokenizer.json").is_file()]
WITH_OLDER = [m for m in DIRECTORIES if (m.path / "config.v4.json").is_file()]


def test_all_directories_are_here() -> None:
    names = {m.id for m in DIRECTORIES}
    assert {"llama-tied.hf", "llama-tied.hf-bf16", "llama-tied.hf-f16", "llama-llama3rope.hf"} <= names
    assert {"mistral.hf", "qwen2.hf", "gemma3.hf"} <= names
    assert {"gemma.hf", "gemma2.hf", "gpt2.hf", "granite.hf", "olmo2.hf"} <= names
    assert {"phi3.hf", "phi3-longrope.hf", "qwen3.hf", "stablelm.hf", "stablelm-12b.hf"} <= names
    assert {"command-r.hf", "command-r-plus.hf", "cohere2.hf", "gptneox.hf", "gptneox-serial.hf"} <= names
    assert {"falcon-7b.hf", "falcon-40b.hf", "starcoder2.hf", "smollm3.hf"} <= names
    assert {"mixtral.hf", "qwen3_moe.hf", "qwen2_moe.hf", "olmoe.hf"} <= names
    assert len(WITH_OLDER) >= 5


def test_every_family_reads_directories() -> None:
    said = {
        json.loads((m.path / "config.json").read_text(encoding="utf-8"))["model_type"] for m in DIRECTORIES
    }
    assert {HF_FAMILIES[model_type].architecture for model_type in said} == set(FAMILIES)


@pytest.mark.parametrize("model", DIRECTORIES, ids=lambda m: m.id)
def test_logits_equal_the_reference(model: Tiny, measured: Callable[..., None]) -> None:
    worst = worst_logit(load_program(model.path), model, 256)
    assert worst < model.tolerance
    measured(model.path, worst)


@pytest.mark.parametrize("model", WITH_OLDER, ids=lambda m: m.id)
def test_an_older_config_says_the_same(model: Tiny, tmp_path: Path) -> None:
    assert worst_logit(load_program(older(model, tmp_path).path), model, 256) < model.tolerance


@pytest.mark.parametrize("model", DIRECTORIES, ids=lambda m: m.id)
def test_logits_of_webgpu_equal_the_reference(
    own_device: Device, model: Tiny, measured: Callable[..., None]
) -> None:
    program = load_on(WebGpuExecutor(own_device), model.path)
    allowed = tolerances.WEBGPU_TINY_GELU if "gemma" in model.id else tolerances.WEBGPU_TINY
    worst = worst_logit(program, model, 64)
    assert worst < allowed
    measured(model.path, worst, own_device.adapter.name)
    program.close()


@pytest.mark.parametrize("model", WITH_TOKENIZER, ids=lambda m: m.id)
def test_greedy_tokens_equal_the_reference(model: Tiny) -> None:
    with wgllm.load(model.path) as llm:
        for case in model.cases():
            n = len(case["greedy"])
            events = llm.generate(case["ids"], max_tokens=n, temperature=0, ignore_eos=True)
            made = [e.token_id for e in events if e.token_id is not None]
            sure = next((i for i, m in enumerate(case["greedy_margins"]) if m < 2 * model.tolerance), n)
            assert made[:sure] == case["greedy"][:sure]
            assert sure > 1


@pytest.mark.parametrize("name", sorted({m.path.parent.name for m in DIRECTORIES}))
def test_a_directory_is_what_its_gguf_file_is(name: str) -> None:
    """The same tensors under the same names but for rows that the converter has turned, and the same keys."""
    directory = open_model(DATA / name / "hf")
    (path,) = {*(DATA / name).glob(f"{name}.f32.gguf"), *(DATA / name).glob(f"{name}.f16.gguf")}
    file = open_gguf(path)
    assert directory.tensors.keys() == file.tensors.keys()
    turned = file.conventions.rope_interleaved and not directory.conventions.rope_interleaved
    offset = directory.conventions.norm_offset
    for key, view in file.tensors.items():
        mine, theirs = directory.tensors[key].array(), view.array()
        if turned and key.split(".")[-2] in ("attn_q", "attn_k"):
            mine, theirs = np.sort(mine, 0), np.sort(theirs, 0)
        if offset and key.endswith("norm.weight"):
            mine = mine + np.float32(offset)
        assert np.array_equal(mine, theirs), key
    known = file.metadata.keys() & directory.metadata.keys()
    for key in known - {"general.name", "tokenizer.chat_template"}:
        mine, theirs = directory.metadata[key], file.metadata[key]
        assert mine == (theirs if isinstance(theirs, str) else pytest.approx(theirs, rel=1e-6)), key
    only = {k.partition(".")[2]: v for k, v in directory.metadata.items() if k not in file.metadata}
    # The converter leaves out what a reader takes for granted.
    heads = directory.metadata[f"{file.architecture}.attention.head_count"]
    for key, granted in (("rope.freq_base", 10000.0), ("attention.head_count_kv", heads)):
        assert only.pop(key, granted) == granted
    only.pop("vocab_size", None)
    # Mistral's window gets lost in conversion.
    assert only.keys() <= {
        "attention.key_length",
        "attention.scale",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "dense_layers",
        "expert_weights_norm",
    }
    mine, theirs = build(directory).config, build(file).config
    rope = replace(mine.rope, interleaved=theirs.rope.interleaved)
    rounded = {name: getattr(theirs.rope, name) for name in ("theta", "magnitude")}
    assert {name: getattr(rope, name) for name in rounded} == pytest.approx(rounded, rel=1e-6)
    if theirs.rope.yarn is None and "rope_factors_long.weight" not in file.tensors:
        rounded["context"] = theirs.rope.context  # which nothing extends
    assert replace(rope, **rounded) == theirs.rope
    assert mine.norm_eps == pytest.approx(theirs.norm_eps, rel=1e-6)
    same = {"rope": theirs.rope, "norm_eps": theirs.norm_eps, "norm_offset": theirs.norm_offset}
    assert replace(mine, **same) == theirs


def test_opening_reads_no_weights() -> None:
    file = open_model(DATA / "llama-tied" / "hf")
    assert all(not v.data.flags.owndata and not v.data.flags.writeable for v in file.tensors.values())
    stored = DATA / "llama-tied" / "hf" / "model.safetensors"
    view = file.tensors["blk.0.attn_q.weight"]
    assert view.data.tobytes() in stored.read_bytes()
    file.close()
    assert not file.tensors


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_text_in_text_out(kind: str, tmp_path: Path) -> None:
    source = DATA / "llama-tied" / "hf"
    path = tmp_path / "model"
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("spm"))
    if kind == "spm":
        for file in (source / "spm").iterdir():
            shutil.copy(file, path)
        (path / "tokenizer.json").unlink()
    with wgllm.load(path) as llm:
        assert llm.tokenizer.path.name == ("tokenizer.json" if kind == "bpe" else "tokenizer.model")
        ids = llm.tokenize("Hello, world")
        assert llm.detokenize(ids).endswith("Hello, world")
        assert (
            sum(1 for e in llm.generate("Hello", max_tokens=4, ignore_eos=True) if e.token_id is not None)
            == 4
        )
        assert llm.has_template and llm.chat_tokens([{"role": "user", "content": "hi"}])


def test_a_shard_or_the_index_stands_for_the_directory() -> None:
    folder = DATA / "qwen2" / "hf"
    whole = open_model(folder).tensors.keys()
    for name in ("model.safetensors.index.json", "model-00003-of-00004.safetensors"):
        file = open_model(folder / name)
        assert file.tensors.keys() == whole and file.path == folder


@pytest.mark.parametrize("fmt", ["q8_0", "q4_0"])
def test_webgpu_runs_a_model_that_is_quantized_as_it_is_loaded(own_device: Device, fmt: str) -> None:
    from wgllm.formats.quantized import quantized
    from wgllm.models import build

    path = DATA / "qwen2" / "hf"
    ids = DIRECTORIES[0].cases()[0]["ids"]
    file = quantized(open_model(path), fmt)
    program = load_on(WebGpuExecutor(own_device), path, quantize=fmt)
    made = run_chunks(program, ids, 64)
    program.close()
    expected = run_chunks(load_program(path, quantize=fmt), ids, 64)
    assert np.abs(made - expected).max() < tolerances.WEBGPU_TINY
    assert {t.dtype for t in build(file).graph.of_kind("weight") if len(t.shape) > 1} == {fmt.upper()}


@pytest.mark.parametrize("name", ["gpt2", "phi3", "stablelm-12b"])
def test_fused_transposed_and_stacked_tensors_are_quantized_as_those_of_gguf(name: str) -> None:
    (file,) = (DATA / name).glob(f"{name}.f*.gguf")
    ids = next(m for m in DIRECTORIES if m.id == f"{name}.hf").cases()[-1]["ids"]
    made, expected, again = (
        run_chunks(load_program(path, quantize="q8_0", **options), ids, 256)
        for path, options in ((DATA / name / "hf", {}), (file, {}), (DATA / name / "hf", {"memory": 0}))
    )
    assert np.abs(made - expected).max() < tolerances.NUMPY_SAME
    assert np.abs(again - expected).max() < tolerances.NUMPY_SAME


def test_the_default_of_the_generation_config_is_sampled_with(tmp_path: Path) -> None:
    path = tmp_path / "m"
    shutil.copytree(DATA / "llama-tied" / "hf", path)
    values: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "eos_token_id": [7, 9],
    }
    (path / "generation_config.json").write_text(json.dumps(values))
    with wgllm.load(path) as llm:
        params = llm.sampling_params()
        assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.9)
        assert {7, 9} <= llm.tokenizer.eog_ids
    values["do_sample"] = False
    (path / "generation_config.json").write_text(json.dumps(values))
    with wgllm.load(path) as llm:
        assert llm.sampling_params().temperature == 0.8
