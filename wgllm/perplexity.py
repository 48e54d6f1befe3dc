"""Perplexity: how well a model foretells a text, chunk by chunk as llama.cpp measures it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wgllm.backends.base import Array
from wgllm.engine import Engine
from wgllm.errors import UsageError


@dataclass(frozen=True)
class Perplexity:
    """The measure over all tokens that were counted so far."""

    chunks: int
    n_chunks: int
    tokens: int
    nll: float
    """Mean negative log likelihood of a token, in nats."""
    nll_error: float
    """Standard error of that mean."""

    @property
    def value(self) -> float:
        return math.exp(self.nll)

    @property
    def error(self) -> float:
        return self.value * self.nll_error


def measure(
    engine: Engine,
    tokens: Sequence[int],
    chunk: int,
    *,
    every_token: bool = False,
    max_chunks: int | None = None,
) -> Iterator[Perplexity]:
    """The perplexity after each chunk of ``chunk`` tokens of a text; what is left at its end is not counted.

    Of each chunk only the second half is counted, so that every token has half a chunk before it; with ``every_token``
    all but the first are. A text that is shorter than one chunk is one, of which all but the first token are counted.
    Where the vocabulary asks for it, each chunk begins with BOS in place of its first token.
    """
    if chunk < 2:
        raise UsageError(f"chunks of {chunk} tokens have nothing to foretell")
    if len(tokens) < 2:
        raise UsageError(f"a text of {len(tokens)} tokens has nothing to foretell")
    if len(tokens) < chunk:
        chunk, every_token = len(tokens), True
    n_chunks = len(tokens) // chunk
    if max_chunks is not None:
        n_chunks = min(n_chunks, max_chunks)
    tokenizer = engine.tokenizer
    first = 0 if every_token else chunk // 2
    total = squares = 0.0
    count = 0
    for i in range(n_chunks):
        ids = list(tokens[i * chunk : (i + 1) * chunk])
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            ids[0] = tokenizer.bos_id
        rows = list(range(first, chunk - 1))
        for logits in engine.each_logits(ids, rows):
            wanted, rows = rows[: len(logits)], rows[len(logits) :]
            losses = _losses(logits, [ids[row + 1] for row in wanted])
            total += float(losses.sum())
            squares += float((losses * losses).sum())
            count += len(losses)
        mean = total / count
        variance = max(0.0, squares / count - mean * mean)
        yield Perplexity(i + 1, n_chunks, count, mean, math.sqrt(variance / max(1, count - 1)))


def _losses(logits: Array, ids: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """-log softmax of the given token in each row."""
    highest = logits.max(axis=1, keepdims=True)
    # In float32 but for the sum, which has as many terms as the vocabulary.
    sums = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    picked = logits[np.arange(len(ids)), np.asarray(ids)].astype(np.float64)
    losses: np.ndarray[tuple[int], np.dtype[np.float64]] = np.log(sums) + highest[:, 0] - picked
    return losses
