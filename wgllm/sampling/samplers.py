"""Each sampler as a function of candidates: (candidates, parameters) → candidates, of which at least one stays.

Formulas are llama.cpp's (src/llama-sampler.cpp); the paper or the proposal of a method is named where there is one.
Sums are in float64. A sampler whose parameter turns it off gives back what it got.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from wgllm.sampling.candidates import Candidates, Ints, probabilities
from wgllm.sampling.dry import Breakers, repetitions

_COLDEST = 1e-6  # below it a division could leave float32
_MAX_PENALTY = 1e30
_FLOAT_MAX_LOG = 88.7228391
_MIROSTAT_M = 100


def logit_bias(c: Candidates, bias: Mapping[int, float]) -> Candidates:
    """logit += bias; candidates with a bias of -inf are taken away."""
    if not bias:
        return c
    tokens = np.array(sorted(bias), np.int64)
    amounts = np.array([bias[t] for t in tokens.tolist()], np.float32)
    at, known = c.positions(tokens)
    logits = c.logits.copy()
    logits[at] += amounts[known]
    biased = c.with_logits(logits)
    if (amounts[known] == -np.inf).any():
        keep = biased.logits > -np.inf
        return biased.take(keep) if keep.any() else c
    return biased


def penalties(c: Candidates, window: Ints, repeat: float, presence: float, frequency: float) -> Candidates:
    """For tokens of the window: logit / repeat if positive, else · repeat; then - count · frequency - presence.

    Keskar et al. 2019 (CTRL, section 4.1), without making negative logits larger; OpenAI's presence and frequency.
    """
    if not len(window) or (repeat == 1 and presence == 0 and frequency == 0):
        return c
    tokens, counts = np.unique(window, return_counts=True)
    at, known = c.positions(tokens)
    logits = c.logits.copy()
    old = logits[at].astype(np.float64)
    scaled = np.where(old > 0, old / repeat, old * repeat)
    logits[at] = scaled - counts[known] * frequency - presence
    return c.with_logits(logits)


def dry(
    c: Candidates, window: Ints, multiplier: float, base: float, allowed_length: int, breakers: Breakers
) -> Candidates:
    """logit -= multiplier · base^(n - allowed_length) for tokens that would make a repetition of n >= allowed_length
    tokens longer (p-e-w, oobabooga/text-generation-webui#5677). A token that is a breaker by itself is spared.
    """
    if multiplier == 0:
        return c
    # Further than this the power leaves float32, and with a base of 1 it never changes.
    largest = int(_FLOAT_MAX_LOG / math.log(base)) if base > 1.000001 else 0
    longest = allowed_length + largest
    tokens, lengths = repetitions(window, allowed_length, longest, breakers)
    if not len(tokens):
        return c
    at, known = c.positions(tokens)
    penalty = multiplier * np.power(np.float64(base), lengths[known] - allowed_length)
    logits = c.logits.copy()
    logits[at] = logits[at].astype(np.float64) - np.minimum(penalty, _MAX_PENALTY)
    return c.with_logits(logits)


def top_n_sigma(c: Candidates, n: float) -> Candidates:
    """Keeps logits >= max - n · σ, where σ is the standard deviation of the candidates' (Tang et al. 2024)."""
    if n <= 0 or len(c) < 2:
        return c
    sigma = float(c.logits.std(dtype=np.float64))
    return c.take(c.logits >= np.float32(float(c.logits.max()) - n * sigma))


def top_k(c: Candidates, k: int) -> Candidates:
    """Keeps the k largest."""
    return c if k <= 0 else c.first(k)


def typical_p(c: Candidates, p: float) -> Candidates:
    """Keeps the fewest candidates whose probabilities exceed p, those first whose surprise -ln p is nearest to the
    entropy (Meister et al. 2022, locally typical sampling)."""
    if p >= 1:
        return c
    c = c.in_order()
    share = probabilities(c.logits)
    seen = share > 0
    surprise = np.full(len(c), np.inf)
    surprise[seen] = -np.log(share[seen])
    entropy = float((share[seen] * surprise[seen]).sum())
    nearest = np.argsort(np.abs(surprise - entropy), kind="stable")
    n = int(np.searchsorted(np.cumsum(share[nearest]), p, side="right")) + 1
    return c.take(np.sort(nearest[:n]))


def top_p(c: Candidates, p: float) -> Candidates:
    """Keeps the fewest candidates, best first, whose probabilities reach p (Holtzman et al. 2020, nucleus)."""
    if p >= 1:
        return c
    best, sums = c.reaching(probabilities(c.logits), p)
    return best.first(int(np.searchsorted(sums, p)) + 1)


def min_p(c: Candidates, p: float) -> Candidates:
    """Keeps candidates at least p times as probable as the first: logit >= max + ln p (Nguyen et al. 2024)."""
    if p <= 0:
        return c
    keep = c.logits >= c.logits.max() + np.float32(math.log(p))
    return c.take(keep) if keep.any() else c.first(1)


def xtc(c: Candidates, probability: float, threshold: float, draw: float) -> Candidates:
    """If draw < probability: of the candidates at least ``threshold`` probable only the last stays, with all below it
    (p-e-w, oobabooga/text-generation-webui#6335)."""
    if draw >= probability or threshold > 0.5 or len(c) < 2:
        return c
    share = probabilities(c.logits)
    above = int(np.count_nonzero(share >= threshold))
    return c.in_order().take(np.arange(above - 1, len(c))) if above > 1 else c


def temperature(c: Candidates, t: float, spread: float = 0.0, exponent: float = 1.0) -> Candidates:
    """logit / t; the best alone if t is 0 or less.

    With a ``spread``, t becomes low + (high - low) · (H / ln n)^exponent, where low = max(0, t - spread),
    high = t + spread and H is the entropy of the n candidates (kalomaze's dynamic temperature).
    """
    if spread > 0:
        if len(c) < 2:
            return c
        share = probabilities(c.logits)
        share = share[share > 0]
        evenness = max(0.0, float(-(share * np.log(share)).sum()) / math.log(len(c)))
        low = max(0.0, t - spread)
        t = low + (t + spread - low) * evenness**exponent
    if t < _COLDEST:
        return c.first(1)
    # Dividing by a positive number keeps the order, also where neighbours become equal: ids break ties already.
    return Candidates(c.logits / np.float32(t), c.ids, c.ordered)


def draw(c: Candidates, u: float) -> tuple[int, float]:
    """The candidate at which the running sum of probabilities, best first, exceeds u of [0, 1): token, probability."""
    share = probabilities(c.logits)
    total = float(share.sum())
    best, sums = c.reaching(share, u * total)
    at = min(int(np.searchsorted(sums, u * total, side="right")), len(sums) - 1)
    return best.token(at), math.exp(float(best.logits[at]) - float(best.logits[0])) * float(sums[0]) / total


def mirostat(c: Candidates, mu: float, vocab_size: int) -> Candidates:
    """Keeps the k best, where k follows from mu and the exponent s of a power law fitted to the 100 best
    (Basu et al. 2020, algorithm 1): k = (ε · 2^mu / (1 - V^-ε))^(1/s), ε = s - 1."""
    best = c.first(_MIROSTAT_M)
    if len(best) < 2:
        return best
    i = np.arange(1, len(best), dtype=np.float64)
    t = np.log((i + 1) / i)
    b = -np.diff(best.logits.astype(np.float64))  # ln(p_i / p_i+1)
    s = float((t * b).sum() / (t * t).sum())
    epsilon = s - 1
    if s <= 0:  # all are equally probable: no power law
        return c.in_order()
    ratio = epsilon / -math.expm1(-epsilon * math.log(vocab_size)) if epsilon else 1 / math.log(vocab_size)
    log2_k = (math.log2(ratio) + mu) / s if ratio > 0 else -math.inf
    k = len(c) if log2_k >= math.log2(len(c)) else int(2**log2_k)
    return c.first(max(1, k))


def mirostat_v2(c: Candidates, mu: float) -> Candidates:
    """Keeps candidates whose surprise -log2 p is at most mu (Basu et al. 2020, in llama.cpp's second form)."""
    share = probabilities(c.logits)
    with np.errstate(divide="ignore"):
        keep = -np.log2(share) <= mu
    return c.take(keep).in_order() if keep.any() else c.first(1)
