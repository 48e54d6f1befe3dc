"""What the model itself thought of a token, before any sampler, and what samplers made of that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wgllm.sampling.candidates import F32, Candidates, order, probabilities


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities under the plain softmax of the logits."""

    logprob: float
    """Of the token that was taken."""
    top: tuple[tuple[int, float], ...]
    """(token id, log probability) of the most probable, best first."""


def log_probabilities(logits: F32, token: int, n: int) -> TokenLogprobs:
    """log softmax(logits) of ``token`` and of the ``n`` best: l - max - log Σ exp(l - max)."""
    peak = float(logits.max())
    norm = peak + float(np.log(np.exp(logits.astype(np.float64) - peak).sum()))
    best = order(logits, n) if n > 0 else ()
    return TokenLogprobs(float(logits[token]) - norm, tuple((int(i), float(logits[i]) - norm) for i in best))


def chances(left: Candidates | None, token: int, others: Iterable[int]) -> tuple[tuple[int, float], ...]:
    """(token id, probability) of ``token`` and of those of ``others`` that samplers had left to draw from.

    ``left`` is what they left (``Sampler.left``), None where ``token`` was taken as the best of all. Most probable
    first; probabilities are those of the draw.
    """
    if left is None:
        return ((token, 1.0),)
    wanted = np.array(sorted({token, *others}), np.int64)
    at, known = left.positions(wanted)
    shares = probabilities(left.logits)[at]
    return tuple((int(wanted[known[i]]), float(shares[i])) for i in np.argsort(-shares, kind="stable"))
