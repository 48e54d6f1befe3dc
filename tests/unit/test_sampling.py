"""Samplers from their definitions, the generator they draw with, and the chain with its history."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgllm.fake import ByteTokenizer
from wgllm.sampling import (
    Candidates,
    Sampler,
    SamplingParams,
    log_probabilities,
    order,
    philox,
    probabilities,
    sample,
    samplers,
    uniform,
)
from wgllm.sampling.dry import breaker_tokens, repetitions

FREE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Parameters under which the probabilities stay the model's."""


def of(*shares: float) -> Candidates:
    return Candidates(np.log(np.array(shares, np.float32)))


def tokens(c: Candidates) -> list[int]:
    c = c.in_order()
    return [c.token(i) for i in range(len(c))]


def logits(seed: int, n: int = 300, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


def test_philox_gives_the_published_vectors() -> None:
    # Random123's known answers (kat_vectors, philox4x32-10), those whose upper counter words are zero.
    assert philox(0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def test_uniform_is_uniform_and_differs_by_seed_and_step() -> None:
    draws = [uniform(seed, step) for seed in range(50) for step in range(200)]
    assert len(set(draws)) > 9_900
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert counts.min() > 850 and counts.max() < 1150


def test_xtc_and_the_draw_use_words_of_their_own() -> None:
    assert uniform(7, 3) == (philox(7, 3)[0] >> 8) / 2**24
    assert uniform(7, 3, 1) == (philox(7, 3)[1] >> 8) / 2**24


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(0, 45))
@settings(deadline=None, max_examples=200)
def test_order_is_by_logit_then_id(values: list[int], k: int) -> None:
    made = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert order(made, k).tolist() == (expected[:k] if 0 < k < len(values) else expected)


@pytest.mark.parametrize("n", [1000, 4096, 10_007])
@pytest.mark.parametrize("k", [1, 7, 40, 77, 500])
@pytest.mark.parametrize("distinct", [3, 50, 10**6])
def test_order_of_large_vocabularies_with_ties(n: int, k: int, distinct: int) -> None:
    values = np.random.default_rng(n + k).integers(0, distinct, n).astype(np.float32)
    assert order(values, k).tolist() == np.lexsort((np.arange(n), -values))[:k].tolist()


# ── Each sampler from its definition ──────────────────────────────────────────────────────────────────────────────


def test_logit_bias_adds_and_forbids() -> None:
    c = Candidates(np.array([1, 2, 3], np.float32))
    assert samplers.logit_bias(c, {0: 4.5, 2: -1.0}).logits.tolist() == [5.5, 2, 2]
    assert tokens(samplers.logit_bias(c, {2: -math.inf})) == [1, 0]
    assert c.logits.tolist() == [1, 2, 3]  # the model's own logits stay


def test_penalties_by_hand() -> None:
    c = Candidates(np.array([2, -2, 4, 1], np.float32))
    made = samplers.penalties(c, np.array([0, 1, 1, 2]), repeat=2.0, presence=0.25, frequency=0.5)
    assert made.logits.tolist() == [1 - 0.75, -4 - 1.25, 2 - 0.75, 1]


def test_penalties_of_ordered_candidates_find_their_tokens_and_order_anew() -> None:
    c = Candidates(np.array([1, 5, 3, 4], np.float32)).first(3)
    assert tokens(c) == [1, 3, 2]
    made = samplers.penalties(c, np.array([1, 0]), repeat=1.0, presence=3.0, frequency=0.0)
    assert tokens(made) == [3, 2, 1]
    tie = samplers.penalties(c, np.array([3]), repeat=1.0, presence=1.0, frequency=0.0)
    assert tokens(tie) == [1, 2, 3]


def naive_dry(window: list[int], allowed: int, breakers: list[list[int]], n: int) -> dict[int, int]:
    """Token → length of the repetition that it would go on with, by looking at all places and lengths."""
    room = len(window)
    for end in range(len(window), 0, -1):
        ends_here = [b for b in breakers if window[:end][-len(b) :] == b]
        if ends_here:
            room = len(window) - end
            break
    if len(window) <= allowed or room < allowed:
        return {}
    found: dict[int, int] = {}
    for token in range(n):
        lengths = [
            length
            for at in range(1, len(window))
            if window[at] == token
            for length in range(min(at, room) + 1)
            if window[at - length : at] == window[len(window) - length :]
        ]
        if lengths and max(lengths) >= allowed and [token] not in breakers:
            found[token] = max(lengths)
    return found


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.integers(0, 4),
    st.sampled_from([[], [[3]], [[2, 3]], [[1], [0, 2, 2]]]),
)
@settings(deadline=None, max_examples=300)
def test_dry_repetitions(window: list[int], allowed: int, breakers: list[list[int]]) -> None:
    by_first = {b[0]: [tuple(x[1:]) for x in breakers if x[0] == b[0]] for b in breakers}
    found, lengths = repetitions(np.array(window, np.int64), allowed, 1000, by_first)
    assert dict(zip(found.tolist(), lengths.tolist(), strict=True)) == naive_dry(window, allowed, breakers, 4)


def test_dry_takes_more_the_longer_the_repetition() -> None:
    c = Candidates(np.zeros(10, np.float32))
    window = np.array([1, 2, 3, 4, 1, 2, 3])  # 4 would make 1 2 3 → 1 2 3 4
    made = samplers.dry(c, window, multiplier=0.5, base=2.0, allowed_length=2, breakers={})
    assert made.logits.tolist() == [0, 0, 0, 0, -0.5 * 2.0 ** (3 - 2), 0, 0, 0, 0, 0]
    assert samplers.dry(c, window, 0.5, 2.0, 4, {}).logits.tolist() == [0.0] * 10
    forever = np.ones(3000, np.int64)
    assert np.isfinite(samplers.dry(c, forever, 1e6, 1e6, 0, {}).logits).all()


def test_breakers_are_the_tokens_that_hold_or_begin_them() -> None:
    tokenizer = ByteTokenizer()
    assert breaker_tokens(tokenizer, [":"]) == {ord(":"): [()]}
    assert breaker_tokens(tokenizer, ["ab"]) == {ord("a"): [(ord("b"),)]}
    assert breaker_tokens(tokenizer, ["n"]) == {ord("n"): [()], 256: [()]}  # <|end|> has one inside


def test_top_n_sigma_by_hand() -> None:
    c = Candidates(np.array([0, 2, 4, 6], np.float32))  # σ = √5
    assert [len(samplers.top_n_sigma(c, n)) for n in (-1, 0, 0.5, 1, 2, 3)] == [4, 4, 1, 2, 3, 4]


def test_top_k_keeps_k() -> None:
    assert [len(samplers.top_k(of(0.5, 0.3, 0.2), k)) for k in (-1, 0, 1, 2, 3, 9)] == [3, 3, 1, 2, 3, 3]


def test_typical_keeps_those_nearest_to_the_entropy() -> None:
    # H = 1.28 nats; surprises 0.92, 1.20, 1.61, 2.30 are 0.36, 0.07, 0.33 and 1.02 from it.
    c = of(0.4, 0.3, 0.2, 0.1)
    assert [tokens(samplers.typical_p(c, p)) for p in (0.0, 0.29, 0.31, 0.55, 0.95, 1.0)] == [
        [1], [1], [1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3],
    ]  # fmt: skip


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    c = of(0.3, 0.5, 0.05, 0.15)
    assert [len(samplers.top_p(c, p)) for p in (0.0, 0.4, 0.6, 0.9, 0.97, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert tokens(samplers.top_p(c, 0.9)) == [1, 0, 3]


def test_top_p_reaches_p_and_typical_exceeds_it() -> None:
    even = Candidates(np.zeros(2, np.float32))
    assert (len(samplers.top_p(even, 0.5)), len(samplers.typical_p(even, 0.5))) == (1, 2)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary(scale: float, p: float) -> None:
    values = logits(5, 20_000, scale)
    share = probabilities(values)
    ranked = np.lexsort((np.arange(len(values)), -values)).tolist()
    kept, reached = 0, 0.0
    while reached < p:
        reached += float(share[ranked[kept]])
        kept += 1
    assert tokens(samplers.top_p(Candidates(values), p)) == ranked[:kept]


def test_min_p_keeps_what_is_at_least_p_times_the_best() -> None:
    c = of(0.3, 0.5, 0.05, 0.15)
    for candidates in (c, c.in_order()):
        kept = [len(samplers.min_p(candidates, p)) for p in (0.0, 0.05, 0.2, 0.5, 0.99, 1.0)]
        assert kept == [4, 4, 3, 2, 1, 1]


def test_xtc_keeps_the_last_of_those_above_the_threshold() -> None:
    c = of(0.3, 0.5, 0.05, 0.15)
    assert tokens(samplers.xtc(c, 1.0, 0.1, draw=0.999)) == [3, 2]
    assert tokens(samplers.xtc(c, 1.0, 0.2, draw=0.0)) == [0, 3, 2]
    assert len(samplers.xtc(c, 1.0, 0.4, draw=0.0)) == 4  # one above: nothing to take away
    assert len(samplers.xtc(c, 0.5, 0.1, draw=0.5)) == 4  # not this time
    assert len(samplers.xtc(c, 1.0, 0.51, draw=0.0)) == 4


def test_dynamic_temperature_by_hand() -> None:
    c = of(0.75, 0.25)
    evenness = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    for t, spread, exponent in ((0.8, 0.5, 1.0), (0.5, 0.8, 2.0)):
        low, high = max(0, t - spread), t + spread
        expected = low + (high - low) * evenness**exponent
        made = samplers.temperature(c, t, spread, exponent)
        np.testing.assert_allclose(made.logits, c.logits / expected, rtol=1e-6)
    even = samplers.temperature(of(0.25, 0.25, 0.25, 0.25), 0.7, 0.5)
    np.testing.assert_allclose(probabilities(even.logits), 0.25)


def test_a_temperature_near_nothing_is_greedy_and_stays_finite() -> None:
    for t in (0.0, -1.0, 1e-9, 1e-45):
        assert tokens(samplers.temperature(Candidates(np.array([1, 3, 3, 2], np.float32)), t)) == [1]
    assert np.isfinite(
        samplers.temperature(Candidates(np.array([1e6, -1e30], np.float32)), 1e-6).logits
    ).all()


def test_the_draw_takes_the_candidate_whose_share_u_falls_in() -> None:
    c = of(0.3, 0.5, 0.2)
    assert [samplers.draw(c, u)[0] for u in (0.0, 0.49, 0.51, 0.79, 0.81, 1 - 2**-24)] == [1, 1, 0, 0, 2, 2]
    assert samplers.draw(c, 0.6)[1] == pytest.approx(0.3, rel=1e-6)


def test_mirostat_v2_keeps_what_surprises_at_most_mu_bits() -> None:
    c = of(0.5, 0.25, 0.125, 0.125)
    assert [len(samplers.mirostat_v2(c, mu)) for mu in (-1.0, 1.5, 2.5, 3.5)] == [1, 1, 2, 4]


def test_mirostat_fits_a_power_law() -> None:
    # Of an exact power law p_i ~ i^-s the estimate of s is exact.
    for s, mu in ((1.5, 4.0), (1.1, 6.0), (1.0, 5.0), (0.7, 3.0), (2.0, -5.0), (3.0, 4000.0)):
        n = 500
        c = Candidates((-s * np.log(np.arange(1, n + 1))).astype(np.float32))
        epsilon = s - 1
        ratio = epsilon / (1 - n**-epsilon) if epsilon else 1 / math.log(n)
        k = min(n, max(1, int(2 ** min(60.0, (math.log2(ratio) + mu) / s))))
        assert abs(len(samplers.mirostat(c, mu, n)) - k) <= 1 + k // 200
    # The fit looks at 100 candidates and no further.
    values = -np.log(np.arange(1.0, 501.0)) * 1.5
    kept = []
    for at in (99, 100):
        lower = values.copy()
        lower[at:] -= 3.0
        kept.append(len(samplers.mirostat(Candidates(lower.astype(np.float32)), 9.0, 500)))
    assert kept[0] != kept[1] == len(samplers.mirostat(Candidates(values.astype(np.float32)), 9.0, 500))
    assert len(samplers.mirostat(Candidates(np.zeros(5, np.float32)), 3.0, 5)) == 5
    assert len(samplers.mirostat(Candidates(np.zeros(1, np.float32)), 3.0, 1)) == 1


def test_logprobs_are_the_plain_softmax() -> None:
    made = log_probabilities(np.log(np.array([0.1, 0.6, 0.3], np.float32)), 2, 2)
    assert made.logprob == pytest.approx(math.log(0.3), abs=1e-6)
    assert [t for t, _ in made.top] == [1, 2]
    assert [p for _, p in made.top] == pytest.approx([math.log(0.6), math.log(0.3)], abs=1e-6)


# ── The chain ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_greedy_takes_the_first_of_the_best() -> None:
    values = np.array([1, 3, 3, 2], np.float32)
    assert sample(values, SamplingParams(temperature=0), seed=1, step=0) == 1
    assert sample(values, SamplingParams(temperature=0, samplers=()), seed=1, step=0) == 1


def test_the_default_chain_is_what_it_was() -> None:
    """Tokens of the default chain for fixed logits: a draw that changed would change everybody's texts."""
    made = [sample(np.round(logits(1), 2), SamplingParams(), seed=9, step=i) for i in range(12)]
    values = np.round(logits(1), 2)
    ids = np.lexsort((np.arange(300), -values))[:40]
    p = np.exp(values[ids].astype(np.float64) - float(values[ids[0]]))
    n = int(np.searchsorted(np.cumsum(p / p.sum()), 0.95)) + 1
    ids = [i for i in ids[:n] if values[i] >= values[ids[0]] + np.float32(math.log(0.05))]
    p = np.exp((values[ids] / np.float32(0.8)).astype(np.float64))
    sums = np.cumsum(p / p.sum())
    assert made == [int(ids[np.searchsorted(sums, uniform(9, i), side="right")]) for i in range(12)]
    assert len(set(made)) > 2


def test_draws_follow_the_probabilities() -> None:
    values = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    counts = Counter(sample(values, SamplingParams(**FREE), seed=5, step=i) for i in range(6000))
    assert [round(counts[i] / 6000, 1) for i in range(3)] == [0.6, 0.3, 0.1]


def test_top_k_one_is_greedy_whatever_the_seed() -> None:
    values = logits(0)
    assert {sample(values, SamplingParams(top_k=1), s, 0) for s in range(20)} == {int(values.argmax())}


@pytest.mark.parametrize(
    "options",
    [
        {}, {"temperature": 0, "repeat_penalty": 5.0}, {"repeat_penalty": 1.3, "repeat_last_n": -1}, FREE,
        {"dry_multiplier": 1.0}, {"xtc_probability": 0.5}, {"mirostat": 1}, {"mirostat": 2}, {"dynatemp_range": 0.5},
        {"typical_p": 0.5, "top_n_sigma": 1.0}, {"samplers": "temp;top_k;penalties", "presence_penalty": 2.0},
        {"logit_bias": {3: 2.0, 4: -math.inf}},
    ],
)  # fmt: skip
def test_the_same_seed_and_prompt_give_the_same_tokens_and_another_seed_others(
    options: dict[str, Any],
) -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(**options), seed, [1, 2, 3] * 5, tokenizer=ByteTokenizer())
        return [sampler.sample(logits(i // 3, scale=1.5)) for i in range(30)]

    assert run(1) == run(1)
    assert (run(1) == run(2)) == (options.get("temperature") == 0)


def test_logits_are_left_as_they_were() -> None:
    values = logits(3)
    before = values.copy()
    params = SamplingParams(
        repeat_penalty=2.0, dry_multiplier=1.0, dry_sequence_breakers=(), logit_bias={1: 3.0}
    )
    Sampler(params, 1, [1, 2, 1, 2, 1]).sample(values)
    assert np.array_equal(values, before)


def test_penalties_look_back_into_the_prompt_and_into_what_was_made() -> None:
    flat = np.zeros(8, np.float32)

    def made(last_n: int, n: int) -> list[int]:
        params = SamplingParams(temperature=0, presence_penalty=1.0, repeat_last_n=last_n)
        sampler = Sampler(params, 1, [0, 1, 2])
        return [sampler.sample(flat) for _ in range(n)]

    assert made(64, 5) == [3, 4, 5, 6, 7]
    assert made(-1, 5) == [3, 4, 5, 6, 7]
    assert made(2, 5) == [0, 1, 2, 0, 1]  # only the last two are remembered
    assert made(0, 3) == [0, 0, 0]
    assert made(-1, 700)[-1] < 8  # the history grows


def test_dry_keeps_a_loop_from_going_on_but_for_breakers() -> None:
    tokenizer = ByteTokenizer()
    prompt = tokenizer.tokenize("abcdx abcdy abcd")
    values = np.full(257, -9.0, np.float32)
    values[[ord("x"), ord("y"), ord("q")]] = [3, 2, 1]

    def first(breakers: tuple[str, ...]) -> str:
        params = SamplingParams(temperature=0, dry_multiplier=2.0, dry_sequence_breakers=breakers)
        return chr(Sampler(params, 1, prompt, tokenizer=tokenizer).sample(values))

    assert first(()) == "q"
    assert first((" ",)) == "q"
    assert first(("d",)) == "x"  # no repetition reaches across a breaker
    assert first(("x",)) == "x"  # and a breaker is never penalized


def test_the_order_of_samplers_matters() -> None:
    values = np.array([2.0, 1.9, 1.0, 0.0], np.float32)

    def kept(order: str) -> list[int]:
        params = SamplingParams(**{**FREE, "top_k": 2, "presence_penalty": 1.5, "samplers": order})
        return tokens(Sampler(params, 1, [0]).candidates(values))

    assert kept("penalties;top_k") == [1, 2]
    assert kept("top_k;penalties") == [1, 0]
    assert kept("penalties") == [1, 2, 0, 3]
    assert kept("") == [0, 1, 2, 3]


def test_a_sampler_that_is_not_listed_does_not_act() -> None:
    params = SamplingParams(top_k=1, temperature=5.0, samplers="top_p", top_p=0.99)
    made = Sampler(params, 1).candidates(np.array([1, 0.5], np.float32))
    assert made.logits.tolist() == [1, 0.5]


def test_xtc_acts_as_often_as_asked_by_its_own_word() -> None:
    sampler = Sampler(SamplingParams(**FREE, xtc_probability=0.3), 4)
    acted = []
    for sampler.step in range(300):
        acted.append(len(sampler.candidates(of(0.6, 0.4).logits)) == 1)
    assert acted == [uniform(4, step, 1) < 0.3 for step in range(300)]
    assert 60 < sum(acted) < 120


def test_mirostat_learns_its_mu_and_uses_no_other_sampler() -> None:
    params = SamplingParams(
        temperature=1.0, mirostat=2, mirostat_ent=2.0, mirostat_lr=0.5, top_k=1, repeat_penalty=9.0
    )
    sampler = Sampler(params, 3, [0, 1])
    values = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert sampler.mu == 4.0
    token = sampler.sample(values)
    shares = [0.4, 0.3, 0.2, 0.1]
    assert sampler.mu == pytest.approx(4.0 - 0.5 * (-math.log2(shares[token]) - 2.0), abs=1e-5)
    assert len({sampler.sample(values) for _ in range(200)}) > 1


def test_mirostat_settles_where_the_surprise_is_what_it_aims_at() -> None:
    values = logits(2, 2000, 1.5)
    for version in (1, 2):
        sampler = Sampler(SamplingParams(temperature=1.0, mirostat=version, mirostat_ent=4.0), 1)
        mu = []
        for _ in range(600):
            sampler.sample(values)
            mu.append(sampler.mu)
        # Each step adds eta · (tau - surprise), so what mu lost over 400 steps is their surprise beyond tau.
        assert 4.0 + (mu[199] - mu[599]) / (0.1 * 400) == pytest.approx(4.0, abs=0.2)


def test_mirostat_at_temperature_zero_is_greedy() -> None:
    values = logits(4)
    for version in (1, 2):
        sampler = Sampler(SamplingParams(temperature=0, mirostat=version, dynatemp_range=1.0), 1)
        assert {sampler.sample(values) for _ in range(5)} == {int(values.argmax())}


def test_hard_logits_are_sampled_all_the_same() -> None:
    """Ties, one candidate, differences beyond exp: no warning, no index out of range."""
    hard = [
        np.zeros(50),
        np.array([1e30, -1e30, 0.0]),
        np.array([5.0]),
        np.linspace(0, 1e-7, 40),
        -np.arange(99) * 50,
    ]
    extremes: dict[str, Any] = {
        "temperature": 0.01, "typical_p": 0.1, "top_p": 0.0, "min_p": 1.0, "top_n_sigma": 1e-3, "xtc_threshold": 0.0,
        "xtc_probability": 1.0, "dynatemp_range": 2.0, "repeat_penalty": 1000.0, "frequency_penalty": -1000.0,
    }  # fmt: skip
    for values in hard:
        for name, value in extremes.items():
            for rest in ({}, FREE, {"mirostat": 1}, {"mirostat": 2}):
                sampler = Sampler(SamplingParams(**{**rest, name: value}), 1, [0] * 70)
                for _ in range(3):
                    assert 0 <= sampler.sample(values.astype(np.float32)) < len(values)
