"""From logits to a token: the default chain (top-k, top-p, min-p, temperature), and the generator that it draws with.

Candidates are ordered by (-logit, id) and step n of a request draws from a counter-based generator of (seed, n), so
that the same logits give the same token on every backend.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import UsageError

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SamplingParams:
    """llama.cpp's names and defaults. ``seed`` None draws a fresh one."""

    temperature: float = 0.8
    top_k: int = 40
    """Keep the k largest; 0 or less keeps all."""
    top_p: float = 0.95
    """Keep the fewest candidates whose probabilities reach p; 1 or more keeps all."""
    min_p: float = 0.05
    """Keep candidates at least p times as probable as the first; 0 keeps all."""
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            if not np.isfinite(getattr(self, name)):
                raise UsageError(f"{name} must be a finite number")
        if self.top_p < 0 or not 0 <= self.min_p <= 1:
            raise UsageError("top_p must not be negative, and min_p must lie between 0 and 1")


def fresh_seed() -> int:
    """A random 32-bit seed."""
    return secrets.randbits(32)


_MASK = 0xFFFFFFFF


def philox(seed: int, counter: int) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words of a 64-bit key and counter (Salmon et al. 2011, section 3.3)."""
    x0, x1, x2, x3 = counter & _MASK, counter >> 32 & _MASK, 0, 0
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        a, b = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ k0, b & _MASK, (a >> 32) ^ x3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return x0, x1, x2, x3


def uniform(seed: int, step: int) -> float:
    """The number in [0, 1) that step ``step`` draws, a multiple of 2^-24 (exact in float32)."""
    return (philox(seed, step)[0] >> 8) * 2.0**-24


def order(logits: F32, k: int) -> Ints:
    """Ids of the ``k`` best candidates by (-logit, id); k <= 0 or k >= V orders all."""
    n = len(logits)
    if not 0 < k < n:
        return np.argsort(-logits, kind="stable")
    # argpartition leaves ties at the border to chance: take everything above the k-th value, then ties by id.
    kth = np.partition(logits, n - k)[n - k]
    above = np.flatnonzero(logits > kth)
    ties = np.flatnonzero(logits == kth)[: k - len(above)]
    ids = np.concatenate([above, ties])
    return ids[np.lexsort((ids, -logits[ids]))]


def probabilities(logits: F32) -> NDArray[np.float64]:
    """softmax in float64."""
    p = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(p / p.sum())


def keep_top_p(logits: F32, p: float) -> int:
    """How many of the candidates (best first) top-p keeps: the fewest whose probabilities reach p, at least one."""
    if p >= 1:
        return len(logits)
    return int(np.searchsorted(np.cumsum(probabilities(logits)), p)) + 1


def keep_min_p(logits: F32, p: float) -> int:
    """How many of the candidates (best first) are at least p times as probable as the first; at least one."""
    if p <= 0:
        return len(logits)
    return max(1, int(np.count_nonzero(logits >= logits[0] + np.float32(np.log(p)))))


def sample(logits: F32, params: SamplingParams, seed: int, step: int) -> int:
    """The token for logits [V]: the first of the best when the temperature is 0 or less, else a draw."""
    if params.temperature <= 0:
        return int(np.argmax(logits))
    ids = order(logits, params.top_k)
    values = logits[ids]
    n = min(len(ids), keep_top_p(values, params.top_p))
    n = min(n, keep_min_p(values[:n], params.min_p))
    cumulative = np.cumsum(probabilities(values[:n] / np.float32(params.temperature)))
    drawn = int(np.searchsorted(cumulative, uniform(seed, step) * cumulative[-1], side="right"))
    return int(ids[min(drawn, n - 1)])
