"""What the model itself thought of a token: log probabilities before any sampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wgllm.sampling.candidates import F32, order


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
