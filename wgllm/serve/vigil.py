"""Whether a process that does not answer is stuck, as in a call of a graphics driver, or only takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psutil

# A process at work uses more of its time than this, even if others leave it little: compiling shaders for minutes, or a
# long step of NumPy's. One that waits for a device that never comes back uses next to none.
_AT_WORK = 0.02
# For how many times as long as one that does nothing one at work is waited for: a driver may also turn in circles.
_PATIENCE = 20


async def is_stuck(answer: asyncio.Future[Any], cpu_seconds: Callable[[], float], seconds: float) -> bool:
    """Waits for ``answer``: False when it has come, also as an error. True when it has not within ``seconds`` in which
    the process did next to nothing, or not within 20 times as many. ``cpu_seconds``: what it has used so far."""
    for _ in range(_PATIENCE):
        before = cpu_seconds()
        await asyncio.wait({answer}, timeout=seconds)
        if answer.done():
            return False
        if cpu_seconds() - before < _AT_WORK * seconds:
            return True
    return True


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used; 0 when there is none of that number any more."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
