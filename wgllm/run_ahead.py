"""Generation in which the device chooses the tokens: the next step is submitted before the last token is known."""

from __future__ import annotations

import time
from collections.abc import Callable

from wgllm.backends.base import StepsAhead
from wgllm.cache import KVCache
from wgllm.sampler_words import DeviceSampling

# A cancel waits for what is in flight: steps that take longer than this, in seconds, are better run one by one, in
# submissions between which somebody looks.
_SHORT_STEP = 0.08
# How many long ones in a row mean that steps are long: a single one may have compiled a shader.
_PATIENCE = 2


class RunAhead:
    """The steps of one request on slot 0. ``end`` must be called; the slot may hold positions too many then."""

    def __init__(
        self,
        steps: StepsAhead,
        cache: KVCache,
        sampling: DeviceSampling,
        draws: int,
        token: int,
        largest_step: int,
    ) -> None:
        """The first step reads ``token`` after what the cache holds, and makes draw ``draws`` of the request."""
        self._steps = steps
        self._cache = cache
        self._input = token
        self._depth = 1  # until it is known that a step is short
        # A ring keeps a window and the largest step: further ahead it would lose what a row after a stop must see.
        self._most = min(steps.most, largest_step + 1)
        self._long_steps = 0
        steps.begin(sampling, draws, token, cache.length(0))

    @property
    def slow(self) -> bool:
        """Whether steps take so long that nothing should be in flight."""
        return self._long_steps >= _PATIENCE

    def next(self, most: int, interrupt: Callable[[], None]) -> int | None:
        """The next token, or None for logits that are no numbers. Of ``most`` (> 0) more steps, that one included,
        some may already be on their way afterwards."""
        steps, started = self._steps, time.perf_counter()
        while steps.in_flight < min(self._depth, most):
            self._cache.begin(0, steps.in_flight + 1)
            steps.submit()
        token = steps.take(interrupt)
        if time.perf_counter() - started < _SHORT_STEP:
            self._long_steps, self._depth = 0, self._most
        else:
            self._long_steps, self._depth = self._long_steps + 1, 1
        if token is not None:
            self._cache.commit(0, [self._input])
            self._input = token
        return token

    def end(self) -> None:
        self._steps.drop()
