"""Processes of a worker that die, or get stuck: ``worker_process`` with a ``FakeEngine`` of another kind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NoReturn

from tests.serve.running import FakeWorker
from wgllm import worker_process
from wgllm.engine import Event, FinishReason
from wgllm.errors import DeviceError
from wgllm.fake import ByteTokenizer, FakeEngine
from wgllm.llm import Llm
from wgllm.worker import Listener
from wgllm.worker_protocol import ModelFacts

_START = "import sys; sys.path[:] = sys.argv[2:]; from tests.serve import engine_children as c; c.main(sys.argv[1])"


def command(name: str) -> list[str]:
    """Starts the child that the function ``name`` makes."""
    return [sys.executable, "-c", _START, name, *(p for p in sys.path if p)]


def plain() -> None:
    """One that does what it should."""


def never_loads() -> None:
    """Dies at its start, when it has been told what to load."""
    sys.stdin.buffer.read(1)
    os._exit(3)


def stuck_in_loading() -> None:
    FakeEngine.__init__ = lambda *args, **options: time.sleep(600)  # type: ignore[method-assign]


def stuck_in_prefill() -> None:
    FakeEngine.step = lambda engine: time.sleep(600)  # type: ignore[assignment, method-assign, return-value]


def stuck_in_prompts() -> None:
    ByteTokenizer._encode_text = lambda *arguments: time.sleep(600)  # type: ignore[assignment, method-assign, return-value]


def stuck_after_5_tokens() -> None:
    step = FakeEngine.step
    made: list[Event] = []

    def some(engine: FakeEngine) -> list[Event]:
        if len(made) >= 5:
            time.sleep(600)
        events = step(engine)
        made.extend(events)
        return events

    FakeEngine.step = some  # type: ignore[method-assign]


def counts_what_comes_after_a_cancel() -> None:
    """Tells as ``cached_tokens`` how many tokens it made of a reply after it had heard that this was cancelled."""
    cancel, end = FakeEngine.cancel, FakeEngine._end
    had: dict[int, int] = {}

    def cancelled(engine: FakeEngine, request: int) -> None:
        cancel(engine, request)
        made = [reply.made for reply in engine._waiting if reply.number == request]
        had.setdefault(request, *made or [0])

    def ended(engine: FakeEngine, reply: Any, reason: FinishReason) -> Event:
        event = end(engine, reply, reason)
        assert event.stats is not None
        after = reply.made - had.get(reply.number, reply.made)
        return replace(event, stats=replace(event.stats, cached_tokens=after))

    FakeEngine.cancel, FakeEngine._end = cancelled, ended  # type: ignore[method-assign]


def aborts() -> None:
    """In the first step, as wgpu-native does."""

    def step(engine: FakeEngine) -> NoReturn:
        print("the driver's last words", file=sys.stderr, flush=True)
        os.abort()

    FakeEngine.step = step  # type: ignore[method-assign]


def has_no_room() -> None:
    """The card can't take the model."""

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise DeviceError("no room on the card")

    FakeEngine.__init__ = refuse  # type: ignore[method-assign]


def sees_no_card() -> None:
    init = Llm.__init__

    def on_numpy(llm: Llm, *arguments: Any, **options: Any) -> None:
        init(llm, *arguments, **{**options, "where": "numpy on the CPU"})

    Llm.__init__ = on_numpy  # type: ignore[method-assign]


def main(name: str) -> None:
    globals()[name]()
    worker_process.main()


class Scripted(FakeWorker):
    """Its n-th process is the n-th of ``children``, the last again and again."""

    def __init__(self, listener: Listener, children: Sequence[str]) -> None:
        super().__init__(listener)
        self._children = list(children)
        self.starts: list[dict[str, Any]] = []
        """With which changes of the options each process was started."""

    def load(self, model: Any, **options: Any) -> Future[ModelFacts]:
        self._next({})
        return super().load(model, **options)

    def restart(self, **changes: Any) -> Future[ModelFacts]:
        self._next(changes)
        return super().restart(**changes)

    def _next(self, changes: dict[str, Any]) -> None:
        self._command = command(self._children[min(len(self.starts), len(self._children) - 1)])
        self.starts.append(changes)
