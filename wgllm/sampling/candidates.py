"""The tokens that are still in play, with their logits; ordering is put off until somebody needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ints = NDArray[np.int64]

_GROUP = 64  # logits per group of the search for the k largest
_PREFIXES = (256, 4096, 32768)


@dataclass(frozen=True)
class Candidates:
    """Logits [n] of tokens ``ids`` [n] (None: 0 … n-1). Either ordered by (-logit, id), or by id."""

    logits: F32
    ids: Ints | None = None
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.logits)

    def token(self, position: int) -> int:
        return position if self.ids is None else int(self.ids[position])

    def take(self, positions: NDArray[Any], *, ordered: bool | None = None) -> Candidates:
        """Those at the given ascending positions, or for which a mask is true."""
        if positions.dtype == np.bool_:
            positions = np.flatnonzero(positions)
        ids = positions if self.ids is None else self.ids[positions]
        return Candidates(self.logits[positions], ids, self.ordered if ordered is None else ordered)

    def first(self, n: int) -> Candidates:
        """The best ``n``."""
        if self.ordered:
            return self if n >= len(self) else self.take(np.arange(n))
        return self.take(order(self.logits, n), ordered=True)

    def in_order(self) -> Candidates:
        return self.first(len(self))

    def with_logits(self, logits: F32) -> Candidates:
        """The same tokens with other logits, whose order is not known."""
        if self.ids is None or not self.ordered:
            return Candidates(logits, self.ids)
        by_id = np.argsort(self.ids)
        return Candidates(logits[by_id], self.ids[by_id])

    def positions(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Where tokens (ascending, each once) stand among the candidates, and which of them do stand there."""
        if self.ids is None:
            known = np.flatnonzero(tokens < len(self))
            return tokens[known], known
        _, at, known = np.intersect1d(self.ids, tokens, assume_unique=True, return_indices=True)
        return at, known

    def reaching(self, weights: F64, total: float) -> tuple[Candidates, F64]:
        """The best candidates, at least until their weights sum to more than ``total``, and the running sums."""
        for k in (*_PREFIXES, len(self)):
            if k >= len(self) or not self.ordered:
                positions = np.arange(len(self)) if self.ordered else order(self.logits, k)
                sums = np.cumsum(weights[positions])
                if k >= len(self) or sums[-1] > total:
                    break
        return self.take(positions, ordered=True), sums


def order(logits: F32, k: int) -> Ints:
    """Positions of the ``k`` best by (-logit, position); k <= 0 or k >= n orders all."""
    n = len(logits)
    if not 0 < k < n:
        return np.argsort(-logits, kind="stable")
    groups = n // _GROUP
    if k <= groups // 2:
        # k groups have a maximum of at least the k-th largest maximum, so the k best are not below it.
        maxima = logits[: groups * _GROUP].reshape(_GROUP, groups).max(0)
        near = np.flatnonzero(logits >= np.partition(maxima, groups - k)[groups - k])
    else:
        # A partition by position would leave ties at the border to chance.
        near = np.flatnonzero(logits >= np.partition(logits, n - k)[n - k])
    values = logits[near]
    return near[np.argsort(-values, kind="stable")[:k]]


def probabilities(logits: F32) -> F64:
    """softmax in float64."""
    p = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(p / p.sum())
