"""Steps of one row that follow on each other on the device: it chooses each token itself, and goes on with it.

The host submits a step before it knows what the last one chose, so that the device never waits for it. What the host
keeps, the positions of cells, does not depend on the tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from wgllm import debug
from wgllm.backends.device import Copy, Device, reported
from wgllm.backends.gpu_memory import GpuMemory
from wgllm.backends.gpu_state import GpuState
from wgllm.backends.native import Call, PublicReadback, Readback
from wgllm.plan import Part, Plan, Schedule, Width
from wgllm.sampler_words import DeviceSampling

_TAKEN_BYTES = 8


@dataclass(frozen=True)
class Work:
    """A schedule that is ready to run."""

    width: Width
    dispatches: Schedule
    calls: Sequence[Call]
    costs: Sequence[int]


class Replays(Protocol):
    """What this needs of a program."""

    def prepare(self, part: Part, rows: int, cells: int = 0) -> Work:
        """A schedule, ready to run."""

    def submit_all(
        self, calls: Sequence[Call], costs: Sequence[int], cost: int, copies: Sequence[Copy]
    ) -> None:
        """In submissions that are short enough; waits for none of them. ``cost`` is that of all."""


class _Step(NamedTuple):
    """All dispatches of a step."""

    calls: list[Call]
    costs: list[int]
    cost: int


class GpuSteps:
    """``StepsAhead`` of a program."""

    def __init__(
        self, program: Replays, device: Device, plan: Plan, memory: GpuMemory, state: GpuState
    ) -> None:
        assert plan.sampling is not None
        self.most = max(1, debug.steps_ahead())
        self._program = program
        self._plan = plan
        self._sampling = plan.sampling
        self._memory = memory
        self._state = state
        self._free = deque(device.readback(_TAKEN_BYTES, "a token") for _ in range(self.most))
        self._waiting: deque[Readback | PublicReadback] = deque()
        self._made: dict[tuple[Width, Part], _Step] = {}
        self._part: Part = "greedy"
        self._slot = 0
        self._pos = 0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def begin(self, sampling: DeviceSampling, draws: int, token: int, pos: int, slot: int = 0) -> None:
        """The next step reads ``token`` at ``pos``, and chooses as a request that has drawn ``draws`` tokens."""
        self.drop()
        self._part = "greedy" if sampling.greedy else "draw"
        self._slot, self._pos = slot, pos
        for name, value in {"token": token, "pos": pos, "slot": slot, "out_rows": 0}.items():
            if name in self._plan.inputs:
                self._memory.write(self._plan.inputs[name].region, np.array([value], np.int32))
        self._memory.write(self._sampling.request, sampling.words(draws))

    def submit(self) -> None:
        """One more step, while fewer than ``most`` are in flight."""
        self._memory.check()
        readback = self._free[0]
        self._state.step(np.array([self._pos], np.int32), np.array([self._slot], np.int32))
        taken = self._memory.buffers[self._sampling.taken.buffer]
        self._program.submit_all(*self._step(), [Copy(taken, 0, _TAKEN_BYTES, readback.buffer, 0)])
        with reported("can't read a token"):
            readback.request()
        self._waiting.append(self._free.popleft())
        self._pos += 1

    def _step(self) -> _Step:
        """The same for many positions."""
        body = self._program.prepare("body", 1, self._pos + 1)
        if (body.width, self._part) not in self._made:
            parts = [body, self._program.prepare("tail", 1), self._program.prepare(self._part, 1)]
            costs = [cost for part in parts for cost in part.costs]
            step = _Step([call for part in parts for call in part.calls], costs, sum(costs))
            self._made[body.width, self._part] = step
        return self._made[body.width, self._part]

    def take(self, interrupt: Callable[[], None] | None = None) -> int | None:
        """The token that the oldest step chose, or None if its logits held a NaN or an infinity.

        Raises what ``interrupt`` raises, with the step still in flight.
        """
        readback = self._waiting[0]
        with reported("can't read a token"):
            readback.wait(interrupt)
            self._waiting.popleft()
            try:
                token, bad = np.frombuffer(readback.read(), np.int32)
            finally:
                self._free.append(readback)
        return None if bad else int(token)

    def drop(self) -> None:
        """Waits for what is in flight and forgets what it chose; what it wrote to the state is still there."""
        while self._waiting:
            readback = self._waiting.popleft()
            readback.drop()
            self._free.append(readback)

    def close(self) -> None:
        self.drop()
        for readback in self._free:
            readback.buffer.destroy()
        self._free.clear()
        self._made.clear()
