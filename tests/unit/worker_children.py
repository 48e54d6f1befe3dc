"""Children of a worker that misbehave: ``worker_process`` with a model or a start of another kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from wgllm import worker_process
from wgllm.engine import Event
from wgllm.fake import FakeEngine

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from tests.unit import worker_children as c; c.main(sys.argv[1])"
)


def command(name: str) -> list[str]:
    """Starts the child that the function ``name`` makes."""
    return [sys.executable, "-c", _START, name, *(p for p in sys.path if p)]


def before_each_step(act: Callable[[], None]) -> None:
    step = FakeEngine.step

    def acting(engine: FakeEngine) -> list[Event]:
        act()
        return step(engine)

    FakeEngine.step = acting  # type: ignore[method-assign]


def aborting() -> None:
    """As wgpu-native does."""
    before_each_step(os.abort)


def failing() -> None:
    def fail() -> None:
        raise ZeroDivisionError("nobody foresaw it")

    before_each_step(fail)


def deaf() -> None:
    """Neither asking nor SIGTERM ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before_each_step(lambda: time.sleep(600))


def noisy() -> None:
    def shout() -> None:
        print("from Python")
        os.write(1, b"from a driver\x1b[2J\n" + b"long" * 5000 + b"\n")
        subprocess.run([sys.executable, "-c", "print('from a process of its own')"], check=True)
        assert sys.stdin.read() == "" and os.read(0, 1) == b""

    before_each_step(shout)


def slow() -> None:
    """Loading takes ten minutes, and tells so."""

    def load(model: str, *, progress: Callable[[int, int], None], **options: Any) -> Any:
        for done in range(60_000):
            progress(done, 60_000)
            time.sleep(0.01)

    worker_process.interface.load = load  # type: ignore[assignment]


def main(name: str) -> None:
    print("something that Python's start-up printed", end="")
    sys.stdout.flush()
    globals()[name]()
    worker_process.main()
