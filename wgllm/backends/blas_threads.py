"""How many threads BLAS uses for a generated token: all, or one while other programs keep a core busy.

BLAS splits each product evenly and waits for the slowest thread. A matrix-vector product takes 0.1 ms; where another
program holds one of the cores it takes a scheduler's slice of some milliseconds, and a token 20 times its time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

# Threads that each BLAS library of this process had at first.
_found: dict[str, int] = {}

_FIRST_PROBE = 16
_LAST_PROBE = 512
# A token with all threads that takes this many times as long as one with a single thread is finished with one.
_PATIENCE = 1.3


class BlasThreads:
    """Measures tokens with all threads and with one, and goes on with what is quicker."""

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` bounds the BLAS that NumPy uses, for all of the process; None leaves it as it is."""
        # None is found for Apple's Accelerate, which schedules threads itself.
        self._libraries = [c for c in ThreadpoolController().lib_controllers if c.user_api == "blas"]
        for library in self._libraries:
            _found.setdefault(library.filepath, library.num_threads)
        self._all = threads or max(_found.values(), default=1)
        self._now = 0
        self.use(self._all)
        self._estimate: dict[int, float] = {}  # seconds per token by thread count
        self._tokens = 0
        self._next_probe = 1  # one thread is tried at the second token: the first warms caches
        self._give_up_at = math.inf
        self._pause = _FIRST_PROBE

    def use(self, threads: int) -> None:
        if threads != self._now:
            self._now = threads
            for library in self._libraries:
                library.set_num_threads(threads)

    def restore(self) -> None:
        """Gives BLAS the threads back that it had before wgllm came."""
        for library in self._libraries:
            library.set_num_threads(_found[library.filepath])

    @contextmanager
    def token(self) -> Iterator[None]:
        """Around the work for one token, in which ``tick`` is called now and then."""
        if self._all == 1 or not self._libraries:
            yield
            return
        best = self.best()
        probing = self._tokens >= self._next_probe
        threads = (1 if best == self._all else self._all) if probing else best
        self.use(threads)
        start = time.perf_counter()
        if threads > 1 and 1 in self._estimate:
            self._give_up_at = start + _PATIENCE * self._estimate[1]
        try:
            yield
            gave_up = self._now != threads
        finally:
            self._give_up_at = math.inf
            self.use(self._all)
        seconds = time.perf_counter() - start
        self._record(threads, 2 * seconds if gave_up else seconds, fresh=probing)
        if probing:
            # Trying what was slower costs, so it is tried ever more rarely.
            self._pause = _FIRST_PROBE if self.best() != best else min(2 * self._pause, _LAST_PROBE)
            self._next_probe = self._tokens + self._pause

    def tick(self) -> None:
        """Finishes a token with one thread that has taken too long with all."""
        if time.perf_counter() > self._give_up_at:
            self.use(1)
            self._give_up_at = math.inf

    def best(self) -> int:
        """The thread count whose tokens are expected to be quicker."""
        return min((self._all, 1), key=lambda n: self._estimate.get(n, 0.0 if n > 1 else math.inf))

    def _record(self, threads: int, seconds: float, *, fresh: bool) -> None:
        self._tokens += 1
        if self._tokens > 1:
            known = seconds if fresh else self._estimate.get(threads, seconds)
            self._estimate[threads] = (known + seconds) / 2
