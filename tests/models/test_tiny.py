"""Tiny models with random weights against transformers' logits: every family, every quantized type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import wgllm
from tests.tiny import ALL, Tiny, load_program, run_chunks, tiny
from tests.tolerances import KV_ROUNDING, NUMPY_SAME
from wgllm.backends.base import Step
from wgllm.formats.gguf import open_gguf
from wgllm.models import FAMILIES


def test_all_reference_files_are_here() -> None:
    names = {t.id for t in ALL}
    assert {"llama-tied.f32", "llama-llama3rope.f32", "mistral.f32", "qwen2.f32", "gemma3.f32"} <= names
    assert {"mixtral.f32", "qwen2_moe.f16", "olmoe.f16", "qwen3_moe.q8_0", "qwen3_moe-k.q4_k"} <= names
    assert sum(name.startswith("llama-q.") for name in names) == 12


def test_every_family_has_a_reference() -> None:
    def architecture(model: Tiny) -> str:
        with open_gguf(model.path) as file:
            return file.architecture

    assert {architecture(model) for model in ALL} == set(FAMILIES)


@pytest.mark.parametrize("model", ALL, ids=lambda t: t.id)
@pytest.mark.parametrize("fused", ["fused", "textbook"])
def test_logits_equal_the_reference(
    model: Tiny, fused: str, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., None]
) -> None:
    if fused == "textbook":
        monkeypatch.setenv("WGLLM_FUSE", "0")
    program = load_program(model.path)
    for case in model.cases():
        program.truncate(0, 0)
        logits = run_chunks(program, case["ids"], 256)
        first, expected = case["logits_start"], np.array(case["logits"], np.float32)
        worst = np.abs(logits[first : first + len(expected)] - expected).max()
        assert worst < model.tolerance, f"{model.id}: {worst}"
        measured(model.path, worst)


@pytest.mark.parametrize("model", ALL, ids=lambda t: t.id)
def test_greedy_tokens_equal_the_reference(model: Tiny) -> None:
    with wgllm.load(model.path) as llm:
        for case in model.cases():
            n = len(case["greedy"])
            events = llm.generate(case["ids"], max_tokens=n, temperature=0, ignore_eos=True)
            made = [e.token_id for e in events if e.token_id is not None]
            # A margin below twice the tolerance may tip either way, and all later tokens with it.
            sure = next((i for i, m in enumerate(case["greedy_margins"]) if m < 2 * model.tolerance), n)
            assert made[:sure] == case["greedy"][:sure]
            assert len(made) == n


@pytest.mark.parametrize(
    "name", ["llama-tied.f32", "qwen2.f32", "gemma2.f32", "gemma3.f32", "cohere2.f16", "gpt2.f32"]
)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_gives_the_same_logits(name: str, chunk: int) -> None:
    # 150 positions with a window of 32: at largest_step 7 gemma3's ring of 39 cells is crossed three times.
    model = tiny(name)
    ids = model.cases()[-1]["ids"]
    whole = run_chunks(load_program(model.path), ids, len(ids))
    parts = run_chunks(load_program(model.path, largest_step=chunk), ids, chunk)
    assert np.abs(whole - parts).max() < NUMPY_SAME


def test_two_sequences_in_one_step_do_not_see_each_other() -> None:
    model = tiny("gemma3.f32")
    a, b = model.cases()[1]["ids"], model.cases()[2]["ids"][:17]
    alone = load_program(model.path)
    expected_a = run_chunks(alone, a, len(a))
    alone.truncate(0, 0)
    expected_b = run_chunks(alone, b, len(b))
    program = load_program(model.path, slots=2)
    step_a, step_b = Step.of(a, 0, slot=1), Step.of(b, 0, slot=0)
    order = np.argsort(np.concatenate([np.arange(len(a)), np.arange(len(b)) + 0.5]))  # rows interleaved
    joined = Step(
        *(np.concatenate([getattr(step_a, f), getattr(step_b, f)])[order] for f in ("token", "pos", "slot")),
        out_rows=np.argsort(order).astype(np.int32),
    )
    logits = program.run(joined.inputs())["logits"]
    assert np.abs(logits[: len(a)] - expected_a).max() < NUMPY_SAME
    assert np.abs(logits[len(a) :] - expected_b).max() < NUMPY_SAME


@pytest.mark.parametrize("name", ["llama-q.q4_k_s", "gemma3.f32", "qwen2.f32", "qwen3_moe-k.q4_k"])
def test_a_model_that_does_not_fit_as_float32_gives_the_same_logits(name: str) -> None:
    model = tiny(name)
    ids = model.cases()[1]["ids"]
    dense = load_program(model.path)
    blocks = load_program(model.path, memory=0)
    some = load_program(model.path, memory=1_000_000 if "q4_k" in name else 100_000)
    if not name.endswith("f32"):
        assert dense.weight_bytes > some.weight_bytes > blocks.weight_bytes
    expected = run_chunks(dense, ids, len(ids))
    for program in (blocks, some):
        assert np.abs(run_chunks(program, ids, len(ids)) - expected).max() < NUMPY_SAME
        program.truncate(0, 0)
        assert np.abs(run_chunks(program, ids, 1) - expected).max() < NUMPY_SAME


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_kv_types_round_but_stay_near(kv_type: str) -> None:
    # The heads of this model have 32 numbers, one block.
    model = tiny("mistral.f32")
    ids = model.cases()[1]["ids"]
    exact = run_chunks(load_program(model.path), ids, len(ids))
    rounded = run_chunks(load_program(model.path, kv_type=kv_type), ids, len(ids))
    by_row = run_chunks(load_program(model.path, kv_type=kv_type), ids, 1)
    error = np.abs(rounded - exact).max()
    assert 0 < error < KV_ROUNDING[kv_type]
    assert np.abs(rounded - by_row).max() < max(NUMPY_SAME, 0.1 * error)
