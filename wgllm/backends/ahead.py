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
from wgllm.backends.signals import SignalsHeld
from wgllm.plan import Part, Plan, Schedule, Width
from wgllm.sampler_words import DeviceSampling

_TAKEN_BYTES = 8
# With more in flight a stop waits longer, and a card that is kept busy by two gains nothing. Software's cores are also
# the host's: lavapipe made 21 tokens a second one by one, and 16 to 19 with two in flight.
_MOST, _MOST_ON_SOFTWARE = 2, 1


@dataclass(frozen=True)
class Prepared:
    """A schedule that is ready to run."""

    width: Width
    dispatches: Schedule
    calls: Sequence[Call]
    costs: Sequence[int]


class Replays(Protocol):
    """What this needs of a program."""

    def prepare(self, part: Part, rows: int, cells: int = 0) -> Prepared:
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
        usual = _MOST_ON_SOFTWARE if device.adapter.kind == "software" else _MOST
        self.most = usual if debug.steps_ahead() is None else max(1, debug.steps_ahead() or 0)
        self._program = program
        self._plan = plan
        self._sampling = plan.sampling
        self._memory = memory
        self._state = state
        self._free = deque(device.readback(_TAKEN_BYTES, "a token") for _ in range(self.most))
        self._waiting: deque[Readback | PublicReadback] = deque()
        self._made: dict[tuple[Width, Part], _Step] = {}
        self._part: Part = "greedy"
        self._pos = 0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def begin(self, sampling: DeviceSampling, draws: int, token: int, pos: int) -> None:
        """The next step reads ``token`` at ``pos`` of slot 0, and chooses as a request with ``draws`` tokens drawn."""
        self.drop()
        self._part = "greedy" if sampling.greedy else "draw"
        self._pos = pos
        for name, value in {"token": token, "pos": pos, "slot": 0, "out_rows": 0}.items():
            if name in self._plan.inputs:
                self._memory.write(self._plan.inputs[name].region, np.array([value], np.int32))
        self._memory.write(self._sampling.request, sampling.words(draws))

    def submit(self) -> None:
        """One more step, while fewer than ``most`` are in flight."""
        self._memory.check()
        step = self._step()
        with SignalsHeld():  # what is submitted and what is known of it belong together
            readback = self._free[0]
            readback.drop()  # what an impatient Ctrl-C may have left
            self._state.step(np.array([self._pos], np.int32), np.zeros(1, np.int32))
            taken = self._memory.buffers[self._sampling.taken.buffer]
            self._program.submit_all(*step, [Copy(taken, 0, _TAKEN_BYTES, readback.buffer, 0)])
            self._waiting.append(self._free.popleft())
            with reported("can't read a token"):
                readback.request()
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
            with SignalsHeld():
                self._free.append(self._waiting.popleft())
                token, bad = np.frombuffer(readback.read(), np.int32)
        return None if bad else int(token)

    def drop(self) -> None:
        """Waits for what is in flight and forgets what it chose; what it wrote to the state is still there."""
        with SignalsHeld(), reported("can't read a token"):
            while self._waiting:
                self._free.append(self._waiting.popleft())
                self._free[-1].drop()

    def close(self) -> None:
        try:
            self.drop()
        finally:
            for readback in (*self._free, *self._waiting):
                readback.buffer.destroy()
            self._free.clear()
            self._waiting.clear()
            self._made.clear()
