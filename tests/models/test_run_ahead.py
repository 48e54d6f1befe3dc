"""Generation in which the device chooses the tokens and the host submits ahead of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import CTX, engine_on, tiny
from wgllm import run_ahead
from wgllm.backends.ahead import GpuSteps
from wgllm.backends.device import Device
from wgllm.backends.native import Readback
from wgllm.backends.webgpu import WebGpuExecutor, WebGpuProgram
from wgllm.engine import Engine, Event, FinishReason, Request, run_request
from wgllm.errors import DeviceError, NumericError
from wgllm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=1.5, seed=5)
STEP = 8
ROOT = Path(__file__).parents[2]


def prompt(n: int) -> list[int]:
    ids = tiny("gemma3.f32").cases()[-1]["ids"]
    return (ids * 4)[:n]


def tokens_of(events: list[Event]) -> list[int]:
    return [e.token_id for e in events if e.token_id is not None]


def engine_with(device: Device, name: str, ctx: int = CTX, step: int = STEP) -> Engine:
    """With small rings, so that they come round."""
    return engine_on(WebGpuExecutor(device), name, ctx=ctx, largest_step=step)


class Counts:
    """What a program's steps were asked to do."""

    def __init__(self) -> None:
        self.begun = self.submitted = self.taken = self.most_in_flight = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    made = Counts()
    begin, submit, take = GpuSteps.begin, GpuSteps.submit, GpuSteps.take

    def counting_begin(steps: GpuSteps, *args: Any) -> None:
        made.begun += 1
        begin(steps, *args)

    def counting_submit(steps: GpuSteps) -> None:
        submit(steps)
        made.submitted += 1
        made.most_in_flight = max(made.most_in_flight, steps.in_flight)

    def counting_take(steps: GpuSteps, interrupt: Any = None) -> int | None:
        made.taken += 1
        return take(steps, interrupt)

    monkeypatch.setattr(GpuSteps, "begin", counting_begin)
    monkeypatch.setattr(GpuSteps, "submit", counting_submit)
    monkeypatch.setattr(GpuSteps, "take", counting_take)
    monkeypatch.setenv("WGLLM_AHEAD", "2")
    # However slow the device is.
    monkeypatch.setattr(run_ahead, "_SHORT_STEP", 60.0)
    return made


@pytest.fixture
def engine(own_device: Device) -> Iterator[Engine]:
    made = engine_with(own_device, "gemma3.f32")
    yield made
    made.close()


def alone(engine: Engine, request: Request, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The same request from an empty cache, each token chosen on the host."""
    engine._truncate(0)
    with monkeypatch.context() as patch:
        patch.setenv("WGLLM_AHEAD", "0")
        events = list(run_request(engine, request))
    engine._truncate(0)
    return events


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", ["gemma3.f32", "llama-tied.f32", "qwen2.f32"])
def test_tokens_are_those_that_the_host_chooses(
    own_device: Device, name: str, params: SamplingParams, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(own_device, name)
    request = Request(prompt(21), 60, params, ignore_eos=True)
    expected = alone(engine, request, monkeypatch)
    assert counts.submitted == 0
    events = list(run_request(engine, request))
    assert tokens_of(events) == tokens_of(expected)
    assert len(set(tokens_of(events))) > (5 if params is DRAWN else 0)
    assert "".join(e.text for e in events) == "".join(e.text for e in expected)
    # The prompt's step makes the first token; no step is submitted whose token nobody wants.
    assert (counts.begun, counts.submitted, counts.taken, counts.most_in_flight) == (1, 59, 59, 2)
    stats = events[-1].stats
    assert stats is not None and (stats.generated_tokens, stats.context_used) == (60, 80)
    engine.close()


def test_a_next_turn_finds_what_is_true(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(20)
    for turn in range(3):
        request = Request(ids, 15, DRAWN, ignore_eos=True)
        events = list(run_request(engine, request))
        ids = [*ids, *tokens_of(events), 3 + turn, 9]
    expected = alone(engine, request, monkeypatch)
    assert tokens_of(events) == tokens_of(expected)


def test_a_stop_string_takes_back_what_ran_ahead(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = alone(engine, Request(prompt(20), 30, DRAWN, ignore_eos=True), monkeypatch)
    at, stop = next(
        (i, e.text)
        for i, e in enumerate(whole)
        if i > 9 and e.text.strip() and e.text not in "".join(f.text for f in whole[:i])
    )
    request = Request(prompt(20), 30, DRAWN, stop=(stop,), ignore_eos=True)
    events = list(run_request(engine, request))
    assert (events[-1].finish, events[-1].stopped_by) == (FinishReason.STOP, stop)
    assert tokens_of(events) == tokens_of(whole)[: at + 1]
    assert counts.submitted == counts.taken + 1  # one was ahead
    assert engine.cache.length(0) == 20 + at
    (program,) = engine.pipeline.programs
    assert isinstance(program, WebGpuProgram)
    assert max(int(p.max()) for p in program._state.positions.values()) == 20 + at - 1
    longer = Request([*prompt(20), *tokens_of(events), 7], 12, DRAWN, ignore_eos=True)
    again = list(run_request(engine, longer))
    assert again[-1].stats is not None and again[-1].stats.cached_tokens == 20 + at
    assert tokens_of(again) == tokens_of(alone(engine, longer, monkeypatch))


def test_an_end_of_text_takes_back_what_ran_ahead(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokens_of(alone(engine, Request(prompt(20), 30, DRAWN, ignore_eos=True), monkeypatch))
    end = next(t for i, t in enumerate(whole) if i > 5 and t not in whole[:i])
    monkeypatch.setattr(engine.tokenizer, "eog_ids", frozenset([end]))
    *events, last = run_request(engine, Request(prompt(20), 30, DRAWN))
    assert last.finish == FinishReason.STOP and tokens_of(events) == whole[: whole.index(end)]
    assert engine.cache.length(0) == 20 + whole.index(end)


def test_leaving_the_loop_early(engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(prompt(20), 30, DRAWN, ignore_eos=True)
    expected = tokens_of(alone(engine, request, monkeypatch))
    for n in (1, 2, 3, 9):
        events = []
        for event in (run := run_request(engine, request)):
            events.append(event)
            if len(events) == n:
                break
        run.close()  # type: ignore[attr-defined]
        assert tokens_of(events) == expected[:n] and not engine.busy
        assert engine.cache.length(0) == 20 + n - 1
    assert tokens_of(list(run_request(engine, request))) == expected


def test_a_cancel_is_seen_while_a_token_is_awaited(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt(20), 30, DRAWN, ignore_eos=True)
    expected = tokens_of(alone(engine, request, monkeypatch))
    take, events = GpuSteps.take, []
    number = engine.submit(request)

    def cancelling(steps: GpuSteps, interrupt: Any = None) -> int | None:
        if counts.taken == 6:
            engine.cancel(number)
        return take(steps, interrupt)

    with monkeypatch.context() as patch:
        patch.setattr(GpuSteps, "take", cancelling)
        while engine.busy:
            events += engine.step()
    assert events[-1].finish == FinishReason.CANCELLED
    assert tokens_of(events) == expected[: len(events) - 1] and 5 < len(events) < 10
    assert tokens_of(list(run_request(engine, request))) == expected


def test_ctrl_c_while_a_token_is_awaited(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt(20), 12, DRAWN, ignore_eos=True)
    expected = tokens_of(alone(engine, request, monkeypatch))
    wait = Readback.wait
    for at in (1, 2, 5):
        waited = 0

        def interrupted(readback: Readback, *args: Any, at: int = at, **how: Any) -> None:
            nonlocal waited
            waited += readback.size == 8
            if waited == at:
                waited += 1
                raise KeyboardInterrupt
            wait(readback, *args, **how)

        with monkeypatch.context() as patch:
            patch.setattr(Readback, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(run_request(engine, request))
        assert waited > at and not engine.busy
        assert tokens_of(list(run_request(engine, request))) == expected


def test_a_context_is_filled_to_its_last_position(own_device: Device, counts: Counts) -> None:
    engine = engine_with(own_device, "gemma3.f32", ctx=64)
    *events, last = run_request(engine, Request(prompt(50), None, GREEDY, ignore_eos=True))
    assert last.finish == FinishReason.CONTEXT and len(events) == 64 - 50 + 1
    assert last.stats is not None and last.stats.context_used == 64
    engine.close()


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_context_shift(
    own_device: Device, params: SamplingParams, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(own_device, "gemma3.f32", ctx=64)
    request = Request(prompt(50), 60, params, ignore_eos=True, context_shift=True, keep=4)
    expected = alone(engine, request, monkeypatch)
    events = list(run_request(engine, request))
    assert tokens_of(events) == tokens_of(expected)
    stats = events[-1].stats
    assert stats is not None and stats.context_shifts == 2 and counts.begun == 3
    engine.close()


def test_log_probabilities_and_penalties_are_the_host_s(engine: Engine, counts: Counts) -> None:
    penalized = SamplingParams(temperature=0, repeat_penalty=1.3)
    list(run_request(engine, Request(prompt(20), 5, penalized, ignore_eos=True)))
    list(run_request(engine, Request(prompt(20), 5, GREEDY, ignore_eos=True, logprobs=3)))
    assert counts.begun == 0


def test_slow_steps_run_one_at_a_time(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt(20), 9, DRAWN, ignore_eos=True)
    expected = tokens_of(alone(engine, request, monkeypatch))
    monkeypatch.setattr(run_ahead, "_SHORT_STEP", 0.0)
    assert tokens_of(list(run_request(engine, request))) == expected
    # Two long ones in a row, and the host waits for logits instead: submissions between which a cancel is seen.
    assert (counts.submitted, counts.taken, counts.most_in_flight) == (2, 2, 1)


def test_no_further_ahead_than_a_ring_allows(
    own_device: Device, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGLLM_AHEAD", "8")
    engine = engine_with(own_device, "gemma3.f32", step=2)
    request = Request(prompt(60), 30, DRAWN, ignore_eos=True)
    expected = tokens_of(alone(engine, request, monkeypatch))
    events = []
    for event in run_request(engine, request):
        events.append(event)
        if len(events) == 20:
            assert len(engine.save_state()[0].tokens) == 60 + 19
    assert tokens_of(events) == expected and counts.most_in_flight == 3
    engine.close()


def test_a_number_that_is_none_names_its_node(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt(20), 12, DRAWN, ignore_eos=True)
    expected = tokens_of(alone(engine, request, monkeypatch))
    (program,) = engine.pipeline.programs
    assert isinstance(program, WebGpuProgram)
    fill = next(f for f in program.plan.fills if [r.tensor for r in f.rows] == ["blk.2.attn_norm.weight"])
    sound = program._memory.read(fill.region, fill.region.size).copy()
    events = []
    with pytest.raises(NumericError, match="layer 2"):
        for event in run_request(engine, request):
            events.append(event)
            if len(events) == 4:
                program._memory.write(fill.region, np.full(fill.region.size // 4, np.nan, np.float32))
    assert tokens_of(events) == expected[: len(events)] and len(events) <= 4 + 2
    assert not engine.busy and engine.cache.length(0) == 0
    program._memory.write(fill.region, sound)
    assert tokens_of(list(run_request(engine, request))) == expected


def test_a_state_saved_between_two_tokens(
    engine: Engine, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt(20), 20, DRAWN, ignore_eos=True)
    expected = tokens_of(alone(engine, request, monkeypatch))
    events = []
    for event in run_request(engine, request):
        events.append(event)
        if len(events) == 8:
            state, arrays = engine.save_state()
            assert len(state.tokens) == 20 + 7
    assert tokens_of(events) == expected
    engine.load_state(state, arrays)
    longer = [*prompt(20), *expected[:8], 5]
    again = Request(longer, 6, GREEDY, ignore_eos=True)
    *tokens, last = run_request(engine, again)
    assert last.stats is not None and last.stats.cached_tokens == 27
    assert tokens_of(tokens) == tokens_of(alone(engine, again, monkeypatch))


def test_closing_while_steps_are_in_flight(own_device: Device, counts: Counts) -> None:
    engine = engine_with(own_device, "gemma3.f32")
    run = run_request(engine, Request(prompt(20), 20, GREEDY, ignore_eos=True))
    for _ in range(5):
        next(run)
    steps = engine.pipeline.steps_ahead()
    assert steps is not None and steps.in_flight == 1
    engine.close()
    with pytest.raises(DeviceError, match="closed"):
        steps.submit()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
@pytest.mark.parametrize(
    "what",
    [("lines",), ("impatient",), ("signals", "30")],
    ids=["before each line", "impatiently", "after random times"],
)
def test_ctrl_c_at_any_moment_leaves_the_rest_usable(own_device: Device, what: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.interrupts", *what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 10
