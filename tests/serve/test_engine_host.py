"""The queue before the engine, and the process that computes, which may die at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import signal
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from tests.serve.engine_children import Scripted
from tests.serve.in_thread import FOR_EVER, PATIENCE
from tests.serve.running import FakeWorker
from wgllm.engine import Event
from wgllm.errors import DeviceError, ModelNotFoundError, UsageError, WorkerError
from wgllm.serve import engine_child
from wgllm.serve.engine_child import Progress
from wgllm.serve.engine_host import Ask, EngineHost
from wgllm.serve.refusals import EngineDied, HostClosed, NotLoaded, QueueFull
from wgllm.serve.turns import Turns
from wgllm.serve.vigil import cpu_seconds, is_stuck
from wgllm.worker import Worker

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


@pytest.fixture(autouse=True)
def _ends_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a process ended, and what it wrote, is known however slowly it goes."""
    monkeypatch.setattr("wgllm.worker_child._EXIT_SECONDS", PATIENCE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The only item is the time by which pauses are measured."""
    now = [1000.0]
    monkeypatch.setattr(engine_child, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


class Kept:
    """A reply that keeps all."""

    def __init__(self, *, streamed: bool = False) -> None:
        self.streamed = streamed
        self.progress: list[Progress] = []
        self.events: list[Event] = []
        self.begun_again = 0
        self.something = asyncio.Event()

    def tell(self, progress: Progress) -> None:
        self.progress.append(progress)
        self.something.set()

    async def add(self, events: Sequence[Event]) -> None:
        self.events += events
        self.something.set()

    def again(self) -> bool:
        if self.streamed and self.events:
            return False
        self.events.clear()
        self.begun_again += 1
        return True

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)


async def prompt(worker: Worker) -> list[int]:
    return await asyncio.wrap_future(worker.tokenize("Hi"))


ASK = Ask(prompt)


def asked_for() -> tuple[Ask, asyncio.Event]:
    """A request, and whether its prompt has been asked for."""
    asked = asyncio.Event()

    async def noting(worker: Worker) -> list[int]:
        made = asyncio.wrap_future(worker.tokenize("Hi"))
        asked.set()
        return await made

    return Ask(noting), asked


@contextlib.asynccontextmanager
async def hosted(
    *replies: str,
    children: Sequence[str] = ("plain",),
    queue_size: int = 4,
    unheard_seconds: float = FOR_EVER,
    silent_seconds: float = FOR_EVER,
    **options: Any,
) -> AsyncIterator[tuple[EngineHost, Scripted]]:
    """A host whose processes are ``children``, one after the other."""
    made: list[Scripted] = []

    def make(listener: Any) -> Scripted:
        made.append(Scripted(listener, children))
        return made[0]

    host = EngineHost(
        "fake",
        {"replies": list(replies) or ["Hello!"], **options},
        queue_size=queue_size,
        make_worker=make,
        unheard_seconds=unheard_seconds,
        silent_seconds=silent_seconds,
    )
    try:
        yield host, made[0]
    finally:
        await host.aclose()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, FOR_EVER))


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def kill(host: EngineHost) -> int:
    """SIGKILL for the process; returns its number."""
    pid = host.worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


async def outcome(work: Awaitable[Any]) -> Any:
    """What work raised, or returned."""
    try:
        return await work
    except Exception as error:
        return error


# The queue


def test_turns_come_in_order_and_leaving_makes_room() -> None:
    async def work() -> None:
        turns, seen = Turns(2), []
        first = turns.enter()
        await first.wait()
        second = turns.enter(lambda done, total: seen.append((done, total)))
        third = turns.enter(lambda done, total: seen.append((done, total)))
        assert (turns.running, turns.waiting) == (1, 2) and seen == [(0, 1), (0, 2)]
        with pytest.raises(QueueFull) as full:
            turns.enter()
        assert full.value.retry_after >= 1
        second.leave()  # gives up
        assert seen[-1] == (1, 2) and not third.granted.done()
        fourth = turns.enter()
        first.leave()
        await third.wait()
        assert not fourth.granted.done()
        for place in (third, first, second, fourth, fourth):
            place.leave()
        assert (turns.running, turns.waiting) == (0, 0)

    run(work())


def test_a_place_whose_owner_was_cancelled_is_passed_on() -> None:
    async def work() -> None:
        turns = Turns(2)
        first, second, third = turns.enter(), turns.enter(), turns.enter()
        waiting = asyncio.create_task(second.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        first.leave()  # before the one who was cancelled could leave
        second.leave()
        await third.wait()
        third.leave()
        assert (turns.running, turns.waiting) == (0, 0)

    run(work())


def test_estimates_follow_what_requests_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        turns = Turns(0)
        for _ in range(40):
            place = turns.enter()
            now[0] += 30.0
            place.leave()
        turns.enter()
        assert turns.estimate() == pytest.approx(30, rel=0.01)
        now[0] += 20.0
        assert turns.estimate() == pytest.approx(10, rel=0.01)
        now[0] += 2000.0
        assert turns.estimate() == 1.0

    run(work())


def test_requests_run_one_by_one_and_cancelled_ones_never_begin() -> None:
    async def work() -> None:
        async with hosted("a" * 8000, "b", "c", delay=0.01) as (host, _):
            replies = [Kept() for _ in range(3)]
            tasks = []
            for reply in replies:
                tasks.append(asyncio.create_task(host.generate(ASK, reply)))
                await asyncio.sleep(0)
            await until(lambda: bool(replies[0].events))
            status = host.status()
            assert (status["state"], status["running"], status["waiting"]) == ("ready", 1, 2)
            assert [p for p in replies[2].progress if p.stage == "queue"] == [Progress("queue", 0, 2)]
            tasks[1].cancel()
            await until(lambda: host.status()["waiting"] == 1)
            tasks[0].cancel()  # in the middle of 80 seconds
            await asyncio.wait(tasks)
            assert replies[1].events == [] and tasks[2].exception() is None
            assert replies[2].text == "b"  # the second request that the engine saw
            assert Progress("queue", 1, 2) in replies[2].progress
            assert host.status()["running"] == 0

    run(work())


def test_who_leaves_while_a_prompt_is_made_keeps_the_turn_until_it_is_made() -> None:
    """The process can't be told to stop that, and computes nothing else meanwhile."""

    async def work() -> None:
        async with hosted("Hello!") as (host, _):
            await host.generate(ASK, Kept())
            made: Future[list[int]] = Future()
            asked = asyncio.Event()

            async def slow_prompt(worker: Worker) -> list[int]:
                asked.set()
                return await asyncio.wrap_future(made)

            first = asyncio.create_task(host.generate(Ask(slow_prompt), Kept()))
            await asked.wait()
            first.cancel()
            await asyncio.wait({first})
            assert first.cancelled()
            reply = Kept()
            second = asyncio.create_task(host.generate(ASK, reply))
            await asyncio.sleep(0.05)
            assert (host.status()["running"], host.status()["waiting"]) == (1, 1)
            made.set_exception(UsageError("no such prompt"))  # which nobody hears any more
            await second
            assert reply.text == "Hello!" and host.status()["running"] == 0

    run(work())


# Loading


def test_it_loads_when_it_is_needed_and_says_so() -> None:
    async def work() -> None:
        async with hosted("Hello!") as (host, worker):
            assert host.status()["state"] == "idle" and worker.pid is None
            await host.start()
            assert host.status()["state"] == "loading"
            replies = [Kept(), Kept()]
            await asyncio.gather(*(host.generate(ASK, reply) for reply in replies))
            assert [reply.text for reply in replies] == ["Hello!", "Hello!"]
            status = host.status()
            assert status["state"] == "ready" and status["where"] == "without a model"
            assert status["message"] is None and len(worker.starts) == 1
            assert [p.stage for p in replies[0].progress] == ["prefill"]

    run(work())


def test_progress_of_loading_reaches_all_who_wait() -> None:
    async def work() -> None:
        async with hosted("Hi", children=("stuck_in_loading", "plain")) as (host, _):
            replies = [Kept(), Kept()]
            tasks = [asyncio.create_task(host.generate(ASK, reply)) for reply in replies]
            await until(lambda: host.worker.alive)
            told = Progress("download", 3, 10, "a.gguf")
            from wgllm.worker import Loading, Notice

            host._child._listen(Loading("download", "a.gguf", 3, 10))
            host._child._listen(Notice("tuning"))
            await until(lambda: all(told in reply.progress for reply in replies))
            status = host.status()
            assert status["progress"] == {"stage": "download", "done": 3, "total": 10, "label": "a.gguf"}
            assert (status["state"], status["message"]) == ("loading", "tuning")
            await kill(host)
            await asyncio.gather(*tasks)
            assert host.status()["progress"] is None

    run(work())


def test_who_waits_for_the_model_hears_when_it_is_loaded() -> None:
    async def work() -> None:
        async with hosted() as (host, worker):
            await asyncio.gather(host.loaded(), host.loaded())
            assert host.status()["state"] == "ready" and len(worker.starts) == 1
            await host.loaded()
        with pytest.raises(HostClosed):
            await host.loaded()

    run(work())


def test_a_model_that_cannot_be_loaded_is_not_tried_again_at_once(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    async def work() -> None:
        class Bad(FakeWorker):
            loads = 0

            def load(self, model: Any, **options: Any) -> Any:
                type(self).loads += 1
                return Worker.load(self, "no-such-model", offline=True)

        host = EngineHost("no-such-model", {}, queue_size=1, make_worker=Bad)
        try:
            for _ in range(3):
                with pytest.raises(NotLoaded, match="no-such-model") as caught:
                    await host.generate(ASK, Kept())
                assert caught.value.retry_after == 2
            with pytest.raises(ModelNotFoundError, match="no-such-model"):
                await host.loaded()
            assert Bad.loads == 1
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "no-such-model" in caplog.text and "for 2 s" in caplog.text
            status = host.status()
            assert status["state"] == "failed" and "no-such-model" in status["message"]
            clock[0] += 2
            for left in (4, 3):  # tried again, in vain, and then not before twice as long has passed
                with pytest.raises(NotLoaded, match="no-such-model") as caught:
                    await host.generate(ASK, Kept())
                assert caught.value.retry_after == left and "for 4 s" in caplog.text
                clock[0] += 1
            assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
        finally:
            await host.aclose()

    run(work())


@pytest.mark.usefixtures("clock")
def test_a_process_that_dies_at_every_start_is_started_four_times() -> None:
    async def work() -> None:
        async with hosted(children=("never_loads",)) as (host, worker):
            for _ in range(3):
                with pytest.raises(NotLoaded, match="ended by itself"):
                    await host.generate(ASK, Kept())
            # Twice on the card, then twice without.
            assert worker.starts == [{}, {}, {"backend": "numpy"}, {}]
            assert host.status()["state"] == "failed"
            with pytest.raises(WorkerError, match="ended by itself"):
                await host.loaded()

    run(work())


# Deaths


@POSIX
@pytest.mark.parametrize("child", ["stuck_in_loading", "stuck_in_prompts", "stuck_in_prefill"])
def test_killed_before_the_first_token_it_begins_again(child: str) -> None:
    async def work() -> None:
        async with hosted("Hello!", children=(child, "plain")) as (host, worker):
            reply = Kept(streamed=True)
            ask, asked = asked_for()
            task = asyncio.create_task(host.generate(ask, reply))
            if child == "stuck_in_loading":
                await until(lambda: host.worker.alive)
                await asyncio.sleep(0.1)
            elif child == "stuck_in_prompts":
                await asked.wait()
            else:
                await until(lambda: bool(reply.progress))
            killed = await kill(host)
            await task
            assert reply.text == "Hello!" and host.worker.pid != killed
            assert len(worker.starts) == 2 and host.status()["restarts"] == 1

    run(work())


@POSIX
def test_killed_while_it_streams_the_reply_ends_and_the_next_one_is_whole() -> None:
    async def work() -> None:
        text = "word " * 40
        stuck = "stuck_after_5_tokens"
        async with hosted(text, children=(stuck, stuck, "plain")) as (host, worker):
            for streamed in (True, False):
                reply = Kept(streamed=streamed)
                task = asyncio.create_task(host.generate(ASK, reply))
                await until(lambda: len(reply.events) > 3)  # noqa: B023
                await kill(host)
                result = await outcome(task)
                if streamed:
                    assert isinstance(result, EngineDied) and "SIGKILL" in str(result)
                    assert reply.begun_again == 0 and text.startswith(reply.text) and reply.text
                else:
                    assert result is None and reply.text == text and reply.begun_again == 1
            assert len(worker.starts) == 3

    run(work())


@POSIX
def test_killed_while_nobody_asks_it_is_started_again() -> None:
    async def work() -> None:
        async with hosted() as (host, _):
            await host.generate(ASK, Kept())
            killed = await kill(host)
            await until(lambda: host.status()["state"] == "ready" and host.worker.pid != killed)

    run(work())


@POSIX
def test_a_card_whose_driver_kills_twice_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wgllm.serve")

    async def work() -> None:
        async with hosted("Hi", children=("aborts", "aborts", "plain")) as (host, worker):
            with pytest.raises(EngineDied, match="SIGABRT"):
                await host.generate(ASK, Kept())
            reply = Kept()
            await host.generate(ASK, reply)
            assert reply.text == "Hi"
            assert worker.starts == [{}, {}, {"backend": "numpy"}]
            assert "without the graphics card" in host.status()["message"]
            told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
            assert ["SIGABRT" in line for line in told] == [True, True, False]
            assert "without the graphics card" in told[2]
            debug = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
            assert sum("the driver's last words" in line for line in debug) == 2

    run(work())


@POSIX
def test_a_card_that_was_given_up_is_tried_again_after_a_while(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    async def work() -> None:
        children = ("aborts", "aborts", "plain", "aborts", "plain", "plain", "aborts", "plain")
        async with hosted("Hi", children=children) as (host, worker):
            card, numpy = {"backend": "auto", "replies": ["Hi"]}, {"backend": "numpy"}

            async def reply_after(seconds: float) -> str | None:
                clock[0] += seconds
                reply = Kept()
                await host.generate(ASK, reply)
                assert reply.text == "Hi"
                message: str | None = host.status()["message"]
                return message

            with pytest.raises(EngineDied, match="SIGABRT"):
                await host.generate(ASK, Kept())
            given_up = "without the graphics card"
            assert given_up in (await reply_after(0) or "")
            assert given_up in (await reply_after(599) or "")
            assert worker.starts == [{}, {}, numpy]
            # It dies once more: that request is NumPy's, and the card's next chance is twice as far away.
            assert given_up in (await reply_after(1) or "")
            assert worker.starts[3:] == [card, numpy]
            assert given_up in (await reply_after(1199) or "")
            assert await reply_after(1) is None
            assert worker.starts[5:] == [card]
            # A good reply was made on it: it is as trusted as at the beginning.
            worker.kill()
            await reply_after(0)
            assert worker.starts[6:] == [{}, {}]

    run(work())
    waits = [r.getMessage().split(" in ")[1] for r in caplog.records if "tries it again" in r.getMessage()]
    assert waits == ["10 min tries it again", "20 min tries it again"]


@POSIX
def test_a_card_that_was_given_up_and_does_not_come_back(clock: list[float]) -> None:
    async def work() -> None:
        async with hosted(
            "Hi", children=("aborts", "aborts", "plain", "has_no_room", "plain", "sees_no_card")
        ) as (
            host,
            worker,
        ):
            card, numpy = {"backend": "auto", "replies": ["Hi"]}, {"backend": "numpy"}
            with pytest.raises(EngineDied, match="SIGABRT"):
                await host.generate(ASK, Kept())
            for seconds in (0, 600, 1199, 1, 2399):
                clock[0] += seconds
                reply = Kept()
                await host.generate(ASK, reply)
                assert reply.text == "Hi"
                assert "without the graphics card" in host.status()["message"]
            # That it has no room is no death, and where it can't be seen NumPy has been loaded already.
            assert worker.starts == [{}, {}, numpy, card, numpy, card]

    run(work())


@POSIX
def test_deaths_that_good_replies_lie_between_are_not_in_a_row() -> None:
    async def work() -> None:
        async with hosted() as (host, worker):
            for _ in range(3):
                await host.generate(ASK, Kept())
                killed = await kill(host)
                await until(lambda: host.worker.pid != killed)  # noqa: B023
            await host.generate(ASK, Kept())
            assert worker.starts == [{}] * 4 and host.status()["message"] is None

    run(work())


def test_a_lost_device_is_as_good_as_a_death() -> None:
    async def work() -> None:
        async with hosted(error=DeviceError("the GPU was lost")) as (host, worker):
            with pytest.raises(EngineDied, match="the GPU was lost"):
                await host.generate(ASK, Kept())
            assert len(worker.starts) >= 2

    run(work())


# A process that hangs without dying


@pytest.mark.parametrize("child", ["stuck_in_prompts", "stuck_in_prefill", "stuck_after_5_tokens"])
def test_one_that_takes_no_notice_of_a_cancel_is_started_again(
    child: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with hosted("Hello, you!", children=(child, "plain"), unheard_seconds=0.2) as (host, worker):
            left, waiting = Kept(), Kept()
            ask, asked = asked_for()
            leaving = asyncio.create_task(host.generate(ask, left))
            if child == "stuck_in_prompts":
                await asked.wait()
            elif child == "stuck_in_prefill":
                await until(lambda: bool(left.progress))
            else:
                await until(lambda: len(left.events) == 5)
            stuck = host.worker.pid
            task = asyncio.create_task(host.generate(ASK, waiting))
            leaving.cancel()
            await asyncio.wait({leaving})
            assert leaving.cancelled()
            await asyncio.wait_for(task, PATIENCE)
            assert waiting.text == "Hello, you!" and host.worker.pid != stuck
            assert worker.starts == [{}, {}] and host.status()["restarts"] == 1
            (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            assert line == "the model's process does not answer any more; it is started again"

    run(work())


@pytest.mark.parametrize("child", ["stuck_in_loading", "stuck_in_prefill", "stuck_after_5_tokens"])
def test_one_that_does_nothing_is_started_again_though_nobody_gave_up(child: str) -> None:
    async def work() -> None:
        async with hosted("Hello, you!", children=(child, "plain"), silent_seconds=3) as (host, worker):
            reply = Kept()
            await host.generate(ASK, reply)
            assert reply.text == "Hello, you!" and worker.starts == [{}, {}]
            await until(lambda: not host._child._vigils)

    run(work())


def test_one_that_waits_for_another_download_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_child, "cpu_seconds", lambda pid: 7.0)
    kills: list[int] = []

    class Idle(FakeWorker):
        pid = 1  # type: ignore[assignment]

        def kill(self) -> None:
            kills.append(1)

    async def work() -> None:
        child = engine_child.EngineChild("fake", {}, Idle, unheard_seconds=FOR_EVER, silent_seconds=0.02)
        child._loading = asyncio.create_task(asyncio.sleep(FOR_EVER))
        child.notice = "another process is fetching the model"
        child.watch(asyncio.get_running_loop().create_future(), 0)
        await asyncio.sleep(0.2)
        assert kills == []
        child.notice = None
        await until(lambda: kills == [1])
        child._loading.cancel()

    run(work())


def test_one_that_ends_what_was_given_up_is_left_alone() -> None:
    async def work() -> None:
        async with hosted("a" * 8000, "Hi", delay=0.1) as (host, worker):
            reply = Kept()
            leaving = asyncio.create_task(host.generate(ASK, reply))
            await until(lambda: bool(reply.progress))
            leaving.cancel()
            reply = Kept()
            await host.generate(ASK, reply)
            assert reply.text == "Hi" and worker.starts == [{}]
            await until(lambda: not host._child._vigils)

    run(work())


def test_only_one_that_does_nothing_is_stuck() -> None:
    async def work() -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert await is_stuck(answer, lambda: 7.0, 0.01)
        looks = itertools.count()
        assert await is_stuck(answer, lambda: next(looks) * 0.001, 0.01)  # at work, but for ever
        assert next(looks) == 40

        def at_work() -> float:
            if (look := next(looks)) == 50:
                answer.set_exception(UsageError("no such prompt"))
            return float(look)

        assert not await is_stuck(answer, at_work, 0.01)  # an error is an answer
        assert not await is_stuck(answer, lambda: 7.0, 0.01)
        assert isinstance(answer.exception(), UsageError)

    run(work())


def test_what_a_process_has_computed_is_seen() -> None:
    before, began = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() < began + 0.1:
        pass
    assert 0 < before < cpu_seconds(os.getpid())
    assert math.isnan(cpu_seconds(2**22 + 1))


# The end


@pytest.mark.parametrize("child", ["stuck_in_loading", "stuck_in_prefill", "plain"])
def test_closing_waits_for_nothing_whatever_happens(child: str) -> None:
    async def work() -> None:
        async with hosted("a" * 8000, children=(child,), delay=0.01) as (host, worker):
            replies = [Kept(), Kept()]
            tasks = [asyncio.create_task(outcome(host.generate(ASK, reply))) for reply in replies]
            if child == "stuck_in_loading":
                await until(lambda: worker.alive)
            else:
                await until(lambda: bool(replies[0].progress))
            await asyncio.wait_for(host.aclose(), PATIENCE)
            results = await asyncio.gather(*tasks)
            assert all(isinstance(result, HostClosed) for result in results), results
            assert not worker.alive
            with pytest.raises(HostClosed):
                await host.generate(ASK, Kept())

    run(work())
