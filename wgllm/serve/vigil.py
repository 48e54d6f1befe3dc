"""Whether a process that does not answer is stuck, as in a call of a graphics driver, or only takes its time."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from typing import Any

import psutil

# A process at work uses more of its time than this, even if others leave it little: compiling shaders for minutes, or a
# long step of NumPy's. One that waits for a device that never comes back uses next to none.
_AT_WORK = 0.02
# For how many times as long as one that does nothing one at work is waited for: a driver may also turn in circles.
_PATIENCE = 20


async def is_stuck(
    answer: asyncio.Future[Any],
    work: Callable[[], float],
    seconds: float,
    *,
    patience: int | None = _PATIENCE,
) -> bool:
    """Waits for ``answer``: False when it has come, also as an error. True when it has not within ``seconds`` in which
    the process did next to nothing, or not within ``patience`` times as many (None: however long it works). ``work``:
    the seconds of processors that it has used so far."""
    for _ in itertools.count() if patience is None else range(patience):
        before = work()
        await asyncio.wait({answer}, timeout=seconds)
        if answer.done():
            return False
        if work() - before < _AT_WORK * seconds:
            return True
    return True


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used; not a number where that can't be told, or there is none any more."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return math.nan
    return float(times.user + times.system)
