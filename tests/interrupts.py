"""Ctrl-C at any moment of a generation on a device: a program of its own, since what goes wrong may end the process.

    python -m tests.interrupts signals 40    real signals after random times, until so many have come through
    python -m tests.interrupts lines         before each line of what keeps track of steps in flight
    python -m tests.interrupts impatient     there too, so often that waits for the device are given up

After each interrupt the same request must make the same tokens. Prints what it has tried.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import time
from types import CodeType, FrameType
from typing import Any

from tests.conftest import open_device
from tests.tiny import engine_on
from wgllm import run_ahead
from wgllm.backends import ahead, device, native, webgpu
from wgllm.engine import Engine, Request, run_request
from wgllm.sampling import SamplingParams

REQUEST = Request([5, 6, 7, 8, 9, 10, 11], 14, SamplingParams(temperature=1.5, seed=5), ignore_eos=True)
WATCHED = (ahead.GpuSteps, native.Readback, run_ahead.RunAhead)
FUNCTIONS = (
    device.Device.mapped,
    device.Device.submit,
    device.Device.hand_over,
    Engine._step_ahead,
    Engine._end_ahead,
)


def tokens(runs: Engine, most: int | None = None) -> list[int]:
    """Of the whole request, or the first ``most``, after which it is left with others in flight."""
    runs._truncate(0)
    with contextlib.closing(run_request(runs, REQUEST)) as events:
        made = (e.token_id for e in events if e.token_id is not None)
        return list(itertools.islice(made, most))


def alarm(number: int, frame: FrameType | None) -> None:
    """The second of a request is its last."""
    global alarms
    alarms += 1
    if alarms == 2:
        signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


alarms = 0


def by_signals(runs: Engine, expected: list[int], count: int) -> int:
    """Until ``count`` requests were interrupted, some of them twice; how many there were in all."""
    rng, seen, tried = random.Random(1), 0, 0
    longest = 0.1
    global alarms
    while seen < count:
        tried += 1
        alarms = 0
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0, longest) + 1e-4, rng.choice((0.0, 0.002)))
        try:
            tokens(runs)
        except KeyboardInterrupt:
            seen += 1
        finally:
            while True:  # a second one may come here
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    break
                except KeyboardInterrupt:
                    continue
        assert not runs.busy
        started = time.monotonic()
        assert tokens(runs) == expected
        longest = time.monotonic() - started  # the machine may do other things, too, for a while
    return tried


def lines() -> list[tuple[CodeType, int]]:
    functions = [f for kind in WATCHED for f in vars(kind).values() if hasattr(f, "__code__")]
    codes = [f.__code__ for f in (*functions, *FUNCTIONS)]
    return list(dict.fromkeys((c, n) for c in codes for _, _, n in c.co_lines() if n is not None))


def by_lines(runs: Engine, expected: list[int], signals: int, most: int | None = None) -> int:
    """At how many lines signals came, so many at once, to a request of which ``most`` tokens are wanted."""
    tried = 0
    for code, line in lines():
        waiting = True

        def trace(frame: FrameType, event: str, arg: Any, code: CodeType = code, line: int = line) -> Any:
            nonlocal waiting
            if waiting and frame.f_code is code and event == "line" and frame.f_lineno == line:
                waiting = False
                for _ in range(signals):
                    signal.raise_signal(signal.SIGINT)
            return trace if frame.f_code is code else None

        sys.settrace(trace)
        try:
            tokens(runs, most)
        except KeyboardInterrupt:
            tried += 1
        finally:
            sys.settrace(None)
        assert not runs.busy
        assert tokens(runs) == expected, (code.co_name, line)
    return tried


def take_time() -> None:
    """Makes the device look as if it were never done at the first two looks."""
    api = native.native()
    assert api is not None
    poll, looks = api._poll, itertools.count()
    api._poll = lambda *given: poll(*given) if next(looks) % 3 == 2 else None


def main() -> None:
    os.environ["WGLLM_AHEAD"] = "2"
    run_ahead._SHORT_STEP = 60.0  # always ahead, however slow the device
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    signal.signal(signal.SIGALRM, alarm)
    executor = webgpu.WebGpuExecutor(open_device(default_limits=False))
    runs = engine_on(executor, "llama-tied.f32", ctx=64, largest_step=8)
    expected = tokens(runs)
    if sys.argv[1] == "signals":
        print("requests", by_signals(runs, expected, int(sys.argv[2])))
    elif sys.argv[1] == "lines":
        print("lines", by_lines(runs, expected, 1))
    else:
        take_time()
        print("lines", by_lines(runs, expected, 8, most=5))
    runs.close()


if __name__ == "__main__":
    main()
