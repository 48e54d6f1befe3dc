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


class RunAhead:
    """The steps of one request on slot 0. ``end`` must be called; the slot may hold positions too many then."""

    def __init__(
        self, steps: StepsAhead, cache: KVCache, sampling: DeviceSampling, draws: int, token: int
    ) -> None:
        """The first step reads ``token`` after what the cache holds, and makes draw ``draws`` of the request."""
        self._steps = steps
        self._cache = cache
        self._input = token
        self._depth = 1  # until it is known how long a step takes
        steps.begin(sampling, draws, token, cache.length(0))

    def next(self, most: int, interrupt: Callable[[], None]) -> int | None:
        """The next token, or None for logits that are no numbers. Of ``most`` (> 0) more steps, that one included,
        some may already be on their way afterwards."""
        steps, started = self._steps, time.perf_counter()
        while steps.in_flight < min(self._depth, most):
            self._cache.begin(0, steps.in_flight + 1)
            steps.submit()
        alone = self._depth == 1
        token = steps.take(interrupt)
        if token is not None:
            self._cache.commit(0, [self._input])
            self._input = token
            if alone and time.perf_counter() - started < _SHORT_STEP:
                self._depth = steps.most
        return token

    def end(self) -> None:
        self._steps.drop()
