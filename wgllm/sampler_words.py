"""What the shader that draws tokens is told of a request, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MOST_CANDIDATES = 128
"""How many it keeps of all tokens."""
REQUEST_WORDS = 16
_MASK = 0xFFFFFFFF

LinkName = Literal["top_k", "top_p", "min_p", "temperature"]
_KINDS: dict[LinkName, int] = {"top_k": 1, "top_p": 2, "min_p": 3, "temperature": 4}
LINKS = frozenset(_KINDS)
MOST_LINKS = (REQUEST_WORDS - 4) // 2


@dataclass(frozen=True)
class DeviceSampling:
    """How a device draws the tokens of a request."""

    seed: int = 0
    links: tuple[tuple[LinkName, float], ...] = ()
    """Samplers and their parameters, in order (of min_p its logarithm); none: the best token is taken."""

    @property
    def greedy(self) -> bool:
        return not self.links

    def words(self, step: int) -> NDArray[np.uint32]:
        """uint32 [REQUEST_WORDS] before draw ``step``: seed (2), step, number of links, then of each its kind and its
        parameter, top_k's as a number and the others' as a float32."""
        made = np.zeros(REQUEST_WORDS, np.uint32)
        made[:4] = self.seed & _MASK, self.seed >> 32 & _MASK, step, len(self.links)
        for i, (name, value) in enumerate(self.links):
            number = np.uint32(value) if name == "top_k" else np.float32(value).view(np.uint32)
            made[4 + 2 * i : 6 + 2 * i] = _KINDS[name], number
        return made
