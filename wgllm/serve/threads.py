"""Work that takes its time goes to threads, of each kind so many that the others still get theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

Made = TypeVar("Made")


class Lane:
    """Threads for one kind of work. Who waits for one holds no thread, and is forgotten when his client leaves."""

    def __init__(self, name: str, most: int) -> None:
        self._most = most
        # Of each event loop its own, since that is what wakes those who wait.
        self._limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar(f"wgllm {name}")

    async def run(self, work: Callable[..., Made], *arguments: object, **options: object) -> Made:
        """``work(*arguments, **options)``. What has begun ends, even if nobody wants it any more."""
        limiter = self._limiter.get(None)
        if limiter is None:
            limiter = anyio.CapacityLimiter(self._most)
            self._limiter.set(limiter)
        call = functools.partial(work, *arguments, **options)
        return await anyio.to_thread.run_sync(call, limiter=limiter)
