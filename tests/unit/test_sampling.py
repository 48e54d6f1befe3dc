"""Samplers from their definitions, and the generator they draw with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgllm.errors import UsageError
from wgllm.sampling import SamplingParams, keep_min_p, keep_top_p, order, philox, sample, uniform


def test_philox_gives_the_published_vectors() -> None:
    # Random123's known answers (kat_vectors, philox4x32-10), those whose upper counter words are zero.
    assert philox(0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def test_uniform_is_uniform_and_differs_by_seed_and_step() -> None:
    draws = [uniform(seed, step) for seed in range(50) for step in range(200)]
    assert len(set(draws)) > 9_900
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert counts.min() > 850 and counts.max() < 1150


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(0, 45))
@settings(deadline=None, max_examples=200)
def test_order_is_by_logit_then_id(values: list[int], k: int) -> None:
    logits = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert order(logits, k).tolist() == (expected[:k] if 0 < k < len(values) else expected)


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = np.array([1, 3, 3, 2], np.float32)
    assert sample(logits, SamplingParams(temperature=0), seed=1, step=0) == 1


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert [keep_top_p(logits, p) for p in (0.0, 0.4, 0.6, 0.9, 0.97, 1.0)] == [1, 1, 2, 3, 4, 4]


def test_min_p_keeps_what_is_at_least_p_times_the_best() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert [keep_min_p(logits, p) for p in (0.0, 0.05, 0.2, 0.5, 0.99, 1.0)] == [4, 4, 3, 2, 1, 1]


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    params = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0)
    counts = Counter(sample(logits, params, seed=5, step=i) for i in range(6000))
    assert [round(counts[i] / 6000, 1) for i in range(3)] == [0.6, 0.3, 0.1]


def test_temperature_sharpens_and_flattens() -> None:
    logits = np.log(np.array([0.6, 0.4], np.float32))

    def share(temperature: float) -> float:
        params = SamplingParams(temperature=temperature, top_k=0, top_p=1, min_p=0)
        return sum(sample(logits, params, 3, i) == 0 for i in range(2000)) / 2000

    # p0^(1/T) / Σ p^(1/T)
    assert share(0.5) == pytest.approx(0.36 / (0.36 + 0.16), abs=0.04)
    assert share(4.0) == pytest.approx(0.6**0.25 / (0.6**0.25 + 0.4**0.25), abs=0.04)


def test_top_k_one_is_greedy_whatever_the_seed() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    assert {sample(logits, SamplingParams(top_k=1), s, 0) for s in range(20)} == {int(logits.argmax())}


@pytest.mark.parametrize(
    "bad", [{"temperature": float("nan")}, {"top_p": float("inf")}, {"min_p": 2.0}, {"top_p": -0.1}]
)
def test_senseless_values_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        SamplingParams(**bad)  # type: ignore[arg-type]
