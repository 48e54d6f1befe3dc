"""Samplers against what llama.cpp made of the same logits (tests/data/make_sampler_vectors.py recorded it)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny
from wgllm.formats.gguf import open_gguf
from wgllm.sampling import Candidates, Sampler, SamplingParams, probabilities, samplers
from wgllm.sampling.dry import breaker_tokens
from wgllm.tokenizer import Tokenizer, tokenizer_from_model

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "samplers.json").read_text(encoding="utf-8"))
HISTORIES: list[list[int]] = RECORDED["histories"]
V = 512


def logits_of(seed: int, scale: float) -> np.ndarray:
    values = np.random.Generator(np.random.PCG64(seed)).normal(0, scale, V)
    return np.round(values, 3).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    with open_gguf(tiny("llama-tied.f32").path) as file:
        yield tokenizer_from_model(file)


def assert_same(c: Candidates, case: dict[str, Any]) -> None:
    """The same candidates, but for one whose running sum lies within float32 of the border."""
    c = c.in_order()
    assert len(c) == case["kept"]
    shown = [*range(min(10, len(c))), *([len(c) - 1] if len(c) > 10 else [])]
    assert [c.token(i) for i in shown] == case["ids"]
    np.testing.assert_allclose(probabilities(c.logits)[shown], case["p"], rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", sorted({case["sampler"] for case in RECORDED["filters"]}))
@pytest.mark.parametrize("ordered", [False, True], ids=["by id", "in order"])
def test_filters(name: str, ordered: bool) -> None:
    for case in (c for c in RECORDED["filters"] if c["sampler"] == name):
        c = Candidates(logits_of(case["seed"], case["scale"]))
        c = c.in_order() if ordered else c
        draw = {"draw": 0.5} if name == "xtc" else {}
        assert_same(getattr(samplers, name)(c, *case["args"], **draw), case)


def changes(c: Candidates, changed: Candidates) -> dict[int, float]:
    differences = changed.logits.astype(np.float64) - c.logits
    return {int(i): float(differences[i]) for i in np.flatnonzero(differences)}


def alternating() -> Candidates:
    return Candidates(np.where(np.arange(V) % 2 == 0, 4.0, -4.0).astype(np.float32))


def assert_same_changes(made: dict[int, float], recorded: dict[str, float]) -> None:
    expected = {int(i): difference for i, difference in recorded.items()}
    assert made.keys() == expected.keys()
    assert made == pytest.approx(expected, rel=1e-5, abs=2e-6)


def test_penalties() -> None:
    for case in RECORDED["penalties"]:
        history = np.array(HISTORIES[case["history"]])
        n = case["repeat_last_n"]
        made = samplers.penalties(
            alternating(), history[max(0, len(history) - n) :], case["repeat_penalty"],
            case["presence_penalty"], case["frequency_penalty"],
        )  # fmt: skip
        assert_same_changes(changes(alternating(), made), case["changed"])


def test_dry_with_its_breakers(tokenizer: Tokenizer) -> None:
    acted = 0
    for case in RECORDED["dry"]:
        breakers = breaker_tokens(tokenizer, case["dry_sequence_breakers"])
        history = np.array(HISTORIES[case["history"]])
        made = samplers.dry(
            alternating(), history[max(0, len(history) - case["dry_penalty_last_n"]) :], case["dry_multiplier"],
            case["dry_base"], case["dry_allowed_length"], breakers,
        )  # fmt: skip
        acted += bool(case["changed"])
        assert_same_changes(changes(alternating(), made), case["changed"])
    assert acted > 40


def test_mirostat_follows_the_same_mu() -> None:
    """llama.cpp draws from another generator: its choices are given, and mu and what stays must follow."""
    for case in RECORDED["mirostat"]:
        mu = 2 * case["tau"]
        for step, (kept, chosen) in enumerate(case["steps"]):
            c = Candidates(logits_of(100 + step, 2.0))
            c = samplers.mirostat(c, mu, V) if case["version"] == 1 else samplers.mirostat_v2(c, mu)
            assert len(c) == kept
            assert c.ids is not None
            share = probabilities(c.logits)[c.ids.tolist().index(chosen)]
            mu -= case["eta"] * (-math.log2(share) - case["tau"])


def test_chains() -> None:
    for case in RECORDED["chains"]:
        sampler = Sampler(SamplingParams(**case["params"]), 1, HISTORIES[case["history"]])
        assert_same(sampler.candidates(logits_of(case["seed"], case["scale"])), case)
