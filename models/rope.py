"""Rope as a model file describes it: its base, how far it reaches, and by which method its context was extended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wgllm.models.config import Keys

# Nobody extends a context by a larger factor.
_MOST = 1e6


@dataclass(frozen=True)
class Yarn:
    """Slow frequencies are divided by ``factor``, fast ones are not, those between are mixed (Peng et al. 2023)."""

    factor: float
    context: int
    """Positions that the model knew before."""
    beta_fast: float
    """Pairs that turn at least so often within those positions are fast …"""
    beta_slow: float
    """… and at most so often slow."""

    def divisors(self, dim: int, theta: float) -> NDArray[np.float32]:
        """What each pair's frequency is divided by: [dim / 2]."""

        def pair(turns: float) -> float:
            """Which pair turns so often."""
            return dim * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = max(0, math.floor(pair(self.beta_fast)))
        high = min(dim - 1, math.ceil(pair(self.beta_slow)))
        slow = np.clip((np.arange(dim // 2) - low) / max(0.001, high - low), 0, 1)
        return (1 / (slow / self.factor + (1 - slow))).astype(np.float32)


@dataclass(frozen=True)
class Rope:
    """How queries and keys are turned by their position."""

    theta: float
    dim: int
    """The first ``dim`` numbers of a head are turned."""
    interleaved: bool
    """Pairs are neighbours (2i, 2i+1); else (i, i + dim/2)."""
    scale: float = 1.0
    """Positions are multiplied by this (linear scaling by a factor f is 1 / f)."""
    magnitude: float = 1.0
    """What has been turned is multiplied by this."""
    yarn: Yarn | None = None
    factors: str | None = None
    """A tensor of the file that frequencies are divided by."""
    context: int = 0
    """Positions that the model knew before its context was extended."""
    limited: bool = False
    """Beyond the context of the training frequencies would depend on how long the text was when they were used."""

    def plain(self) -> Rope:
        """The same without all that extends the context."""
        return Rope(self.theta, self.dim, self.interleaved, context=self.context)


def read_rope(keys: Keys, head_dim: int, n_ctx_train: int) -> Rope:
    """Raises ModelFileError for kinds that wgllm does not know, and for values that make no sense."""
    dim = keys.integer("rope.dimension_count", head_dim)
    if dim > head_dim or dim % 2:
        raise keys.fail("rope.dimension_count", f"{dim} does not fit heads of {head_dim}")
    theta = keys.number("rope.freq_base", 10000.0)
    # Linear is the kind that is meant when none is named; older files call the factor rope.scale_linear; 0 says none.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0, low=0), low=0) or 1.0
    if not 1 / _MOST <= factor <= _MOST:
        raise keys.fail("rope.scaling.factor", f"{factor:g} is not a sensible value")
    kind = keys.text("rope.scaling.type", "linear")
    context = keys.integer("rope.scaling.original_context_length", n_ctx_train, high=1 << 31)
    magnitude = keys.number("rope.scaling.attn_factor", 1.0, low=0) or 1.0
    yarn = None
    if kind == "yarn":
        beta_fast = keys.number("rope.scaling.yarn_beta_fast", 32.0)
        beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1.0)
        if theta <= 1:
            raise keys.fail("rope.freq_base", f"{theta:g} makes no sense with YaRN")
        if min(beta_fast, beta_slow) < 1 / _MOST:
            raise keys.fail(
                "rope.scaling.yarn_beta_slow", f"{beta_slow:g} and {beta_fast:g} are not sensible"
            )
        yarn = Yarn(factor, context, beta_fast, beta_slow)
        magnitude *= 1 + 0.1 * math.log(max(factor, 1.0))
        factor = 1.0
    elif kind in ("none", "dynamic"):
        factor = 1.0
    elif kind not in ("linear", "longrope"):
        raise keys.fail(
            "rope.scaling.type", f"{kind!r} is not supported (none, linear, dynamic, yarn and longrope are)"
        )
    return Rope(
        theta,
        dim,
        keys.file.conventions.rope_interleaved,
        1.0 / factor,
        magnitude,
        yarn,
        context=context,
        limited=kind == "dynamic",
    )
