"""Who computes and who waits: one request at a time, the others in order, no more of them than may wait."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from wgllm.serve.refusals import QueueFull

# What a request is taken to last before one has ended, and how much a new one counts in the mean.
_FIRST_GUESS = 5.0
_WEIGHT = 0.3
_LONGEST_WAIT = 600.0


class Place:
    """A request's place in the queue, or its turn."""

    def __init__(self, turns: Turns, moved: Callable[[int, int], None]) -> None:
        self._turns = turns
        self._moved = moved
        self._ahead_at_first = 0
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.since: float | None = None
        """When its turn came."""
        self._work: asyncio.Future[Any] | None = None

    async def wait(self) -> None:
        """Until it is this request's turn."""
        await self.granted

    def hold(self, work: asyncio.Future[Any]) -> None:
        """Its turn ends no earlier than ``work``, which nobody can stop."""
        self._work = work

    def leave(self) -> None:
        """Lets the next one compute, or stops waiting."""
        if self._work is None or self._work.done():
            self._turns._left(self)
        else:
            self._work.add_done_callback(lambda work: self._turns._left(self))

    def _stands_at(self, ahead: int) -> None:
        self._ahead_at_first = max(self._ahead_at_first, ahead)
        self._moved(self._ahead_at_first - ahead, self._ahead_at_first)


class Turns:
    """Gives out turns, first come, first served."""

    def __init__(self, size: int) -> None:
        """At most ``size`` requests wait beside the one that has its turn."""
        self._size = size
        self._current: Place | None = None
        self._waiting: deque[Place] = deque()
        self._mean_seconds = _FIRST_GUESS

    @property
    def running(self) -> int:
        return int(self._current is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, moved: Callable[[int, int], None] = lambda done, total: None) -> Place:
        """A place at the queue's end. ``moved`` is told how many of those that were ahead have gone, and how many
        there were, whenever that changes while it waits. Raises QueueFull."""
        place = Place(self, moved)
        if self._current is None:
            self._grant(place)
        elif len(self._waiting) >= self._size:
            raise QueueFull(len(self._waiting), self.estimate())
        else:
            self._waiting.append(place)
            place._stands_at(len(self._waiting))
        return place

    def estimate(self) -> float:
        """Seconds until the queue has room again, as long as requests have lasted lately."""
        current = self._current
        spent = time.monotonic() - current.since if current is not None and current.since is not None else 0.0
        return min(_LONGEST_WAIT, max(1.0, self._mean_seconds - spent))

    def _grant(self, place: Place) -> None:
        self._current = place
        place.since = time.monotonic()
        if not place.granted.done():
            place.granted.set_result(None)

    def _left(self, place: Place) -> None:
        if place is self._current:
            assert place.since is not None
            lasted = time.monotonic() - place.since
            self._mean_seconds += _WEIGHT * (lasted - self._mean_seconds)
            self._current = None
            if self._waiting:
                self._grant(self._waiting.popleft())
        elif place in self._waiting:
            self._waiting.remove(place)
        else:
            return
        for i, other in enumerate(self._waiting, 1):
            other._stands_at(i)
