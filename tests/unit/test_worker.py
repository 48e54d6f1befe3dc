"""The worker: everything arrives in order, cancels are seen, and no death of a process takes another one with it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

import wgllm
from tests.tiny import tiny
from tests.unit import worker_children
from tests.unit.test_cli import ROOT
from wgllm.backends.device import OutOfDeviceMemory
from wgllm.engine import Event, FinishReason, Request, Stats, run_request
from wgllm.errors import DeviceError, ModelFileError, ModelNotFoundError, UsageError, WorkerError
from wgllm.llm import Llm
from wgllm.sampling import SamplingParams
from wgllm.worker import Died, Events, Failed, Loading, Message, Prefilling, Worker
from wgllm.worker_engine import WorkerEngine
from wgllm.worker_protocol import (
    error_from_wire,
    error_to_wire,
    event_from_wire,
    event_to_wire,
    pack,
    read_message,
    request_from_wire,
    request_to_wire,
)

MODEL = tiny("qwen2.f32").path
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
# How long anything may take on a slow machine that does other things too.
PATIENCE = 60.0
# Of each token, so that a reply of 8000 takes longer than all that.
LONG = 0.01
GREEDY = SamplingParams(temperature=0)
M = TypeVar("M")


class Inbox:
    """A listener whose messages are waited for."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.all: list[Message] = []

    def __call__(self, message: Message) -> None:
        self.queue.put(message)

    def next(self, kind: type[M], wanted: Callable[[M], bool] = lambda message: True) -> M:
        """The next message of a kind; those before it are kept in ``all``."""
        while True:
            message = self.queue.get(timeout=PATIENCE)
            self.all.append(message)
            if isinstance(message, kind) and wanted(message):
                return message

    def finished(self, request: int) -> list[Event]:
        """The request's events, until its last."""
        events: list[Event] = []
        while not events or events[-1].finish is None:
            events += self.next(Events, lambda message: message.request == request).events
        return events


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    """For tests that end no process."""
    with Worker() as worker:
        yield worker


def gone(pid: int) -> bool:
    """Whether a process has ended and been taken note of by its parent, or by nobody who could."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE and process.ppid() != os.getpid()
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def fake(worker: Worker, *replies: str, **options: Any) -> None:
    worker.load_fake(replies or "Hello!", **options).result(PATIENCE)


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events)


# What goes through the pipes


def test_all_of_a_request_arrives() -> None:
    sampling = SamplingParams(
        0.5, seed=2**64 - 1, logit_bias={3: float("-inf"), 4: 1.5}, samplers="top_k;temp"
    )
    request = Request([1, 2], 5, sampling, ("\ud800", "é"), True, 2, True, False, True, -1, [3], True)
    assert all(getattr(request, name) != value for name, value in vars(Request([])).items())
    sent = read_message(io.BytesIO(pack(request_to_wire(request))))
    assert sent is not None and request_from_wire(sent) == request


@pytest.mark.parametrize(
    "event",
    [
        Event(7, "a\ud800", 1),
        Event(7, "", 1, None, None, None, -0.5, ((1, -0.5), (2, -float("inf"))), ((1, 0.75),), 3),
        Event(7, "é", None, FinishReason.STOP, Stats(1, 2, 3, 0.5, 0.25, None, 4, 5, 6, 7), "x"),
    ],
)
def test_all_of_an_event_arrives(event: Event) -> None:
    sent = read_message(io.BytesIO(pack({"event": event_to_wire(event, 7)})))
    assert sent is not None and event_from_wire(sent["event"]) == event


@pytest.mark.parametrize(
    ("error", "kind", "code", "says"),
    [
        (UsageError("so"), UsageError, 2, "so"),
        (ModelNotFoundError("so"), ModelNotFoundError, 3, "so"),
        (ModelFileError("a/b.gguf", "header", "bad"), ModelFileError, 4, "b.gguf: header: bad"),
        (OutOfDeviceMemory("so"), DeviceError, 5, "so"),
        (MemoryError(), WorkerError, 1, "out of memory"),
        (FileNotFoundError(2, "not there", "f"), WorkerError, 1, "f: not there"),
        (ValueError("two\nlines"), WorkerError, 1, "internal error: ValueError: two lines"),
    ],
)
def test_errors_keep_their_class(error: Exception, kind: type, code: int, says: str) -> None:
    sent = read_message(io.BytesIO(pack(error_to_wire(error))))
    assert sent is not None
    arrived = error_from_wire(sent)
    assert type(arrived) is kind and arrived.exit_code == code and str(arrived).startswith(says)
    if isinstance(error, ModelFileError):
        assert vars(arrived) == vars(error)


# A model


def test_a_model_does_what_it_does_here(inbox: Inbox, shared: Worker) -> None:
    facts = shared.load(MODEL, backend="numpy", ctx_size=256).result(PATIENCE)
    assert (facts.name, facts.quantization, facts.ctx_size, facts.path) == (
        "tiny-qwen2",
        "F32",
        256,
        str(MODEL),
    )
    assert facts.where.startswith("numpy") and facts.has_template and facts == shared.facts
    messages = [{"role": "user", "content": "Hello <|im_end|> there"}]
    with wgllm.load(MODEL, backend="numpy", ctx_size=256) as llm:
        tokens = shared.chat_tokens(messages).result(PATIENCE)
        assert tokens == llm.chat_tokens(messages)
        assert shared.tokenize("a\ud800 é", parse_special=True).result(PATIENCE) == llm.tokenize("a\ud800 é")
        assert shared.count_tokens("é" * 1000).result(PATIENCE) == len(llm.tokenize("é" * 1000))
        assert shared.detokenize(tokens).result(PATIENCE) == llm.detokenize(tokens)
        assert shared.token_texts(tokens[:3]).result(PATIENCE) == [
            llm.tokenizer.detokenize([t], continuation=True) for t in tokens[:3]
        ]
        assert shared.token_bytes([*tokens[:3], 10**6]).result(PATIENCE) == [
            *(llm.tokenizer.token_bytes(t) for t in tokens[:3]),
            b"",
        ]
        assert shared.sampling_params(top_k=3).result(PATIENCE) == llm.sampling_params(top_k=3)
        bias = {7: -1.0, 9: float("-inf")}
        assert shared.sampling_params(logit_bias=bias).result(PATIENCE).logit_bias == bias
        for cached in (0, len(tokens) - 1):  # the cache is kept
            request = Request(
                tokens, 40, SamplingParams(seed=5, logit_bias={7: -1.0}), ignore_eos=True, logprobs=3
            )
            number = shared.generate(request, inbox)
            assert inbox.next(Prefilling) == Prefilling(number, cached, len(tokens))
            here = [replace(e, request=number) for e in run_request(llm.engine, request)]
            there = inbox.finished(number)
            assert there[:-1] == here[:-1] and len(there) == 41
            stats, own = there[-1].stats, here[-1].stats
            assert stats is not None and own is not None and stats.cached_tokens == cached
            times = ("prefill_seconds", "decode_seconds", "first_token_seconds")
            assert all(getattr(stats, name) > 0 for name in times)
            assert replace(stats, **{name: getattr(own, name) for name in times}) == own
    shared.unload().result(PATIENCE)
    assert shared.facts is None and shared.alive
    with pytest.raises(UsageError, match="no model is loaded"):
        shared.tokenize("a").result(PATIENCE)


def test_errors_of_loading(tmp_path: Path, shared: Worker) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(20))
    for options, kind, code, says in (
        ({"model": "no-such-model"}, ModelNotFoundError, 3, "no-such-model"),
        ({"model": bad}, ModelFileError, 4, "bad.gguf: "),
        ({"model": MODEL, "backend": "cuda"}, UsageError, 2, "'cuda'"),
        ({"model": MODEL, "colour": "red"}, UsageError, 2, "'colour'"),
    ):
        with pytest.raises(kind, match=says) as caught:
            shared.load(**options).result(PATIENCE)
        assert caught.value.exit_code == code and shared.alive and shared.facts is None
    with pytest.raises(UsageError, match="plain data"):
        shared.load(MODEL, overrides=object()).result(0)
    # What was asked of a card is left out when going on without.
    with pytest.raises(UsageError, match="no graphics card"):
        shared.load(MODEL, backend="numpy", device="1", ctx_size=128).result(PATIENCE)
    assert shared.restart(backend="numpy").result(PATIENCE).ctx_size == 128


def test_errors_of_requests(inbox: Inbox, shared: Worker) -> None:
    fake(shared, ctx_size=100, chat_template="{{ raise_exception('no') }}")
    number = shared.generate(Request(list(range(101))), inbox)
    failed = inbox.next(Failed)
    assert failed.request == number and isinstance(failed.error, UsageError)
    with pytest.raises(UsageError, match="no"):
        shared.chat_tokens([]).result(PATIENCE)
    fake(shared, error=DeviceError("the card was lost"))
    number = shared.generate(Request([1]), inbox)
    failed = inbox.next(Failed)
    assert (failed.request, failed.error.exit_code, str(failed.error)) == (number, 5, "the card was lost")


# Events


def test_a_flood_of_events_arrives_whole_in_few_messages(inbox: Inbox, shared: Worker) -> None:
    reply = "".join(f"{i:4}." for i in range(2000))
    fake(shared, reply, ctx_size=20_000)
    started = time.monotonic()
    events = inbox.finished(shared.generate(Request([1]), inbox))
    seconds = time.monotonic() - started
    assert text(events) == reply and len(events) == 10_001
    assert [e.token_id for e in events[:-1]] == list(reply.encode())
    stats = events[-1].stats
    assert stats is not None and stats.generated_tokens == 10_000
    assert len(inbox.all) <= 100 * seconds + 5


def test_requests_run_in_turn_and_can_be_cancelled_at_any_time(inbox: Inbox, shared: Worker) -> None:
    fake(shared, "a" * 8000, "b", "c", delay=LONG)
    first, second, third = (shared.generate(Request([1]), inbox) for _ in range(3))
    inbox.next(Events)
    shared.cancel(second)
    assert shared.count_tokens("abc").result(PATIENCE) == 3  # answered meanwhile
    shared.cancel(first)
    end = inbox.next(Events, lambda message: message.events[-1].finish is not None)
    assert (end.request, end.events[-1].finish) == (first, FinishReason.CANCELLED)
    (cancelled,) = inbox.finished(second)
    assert cancelled.finish is FinishReason.CANCELLED
    assert text(inbox.finished(third)) == "c"
    for number in (first, third, 12345):
        shared.cancel(number)
    assert text(inbox.finished(shared.generate(Request([1]), inbox))) == "c"


def test_a_cancel_is_seen_while_the_prompt_is_read(inbox: Inbox, shared: Worker) -> None:
    shared.load(MODEL, backend="numpy", ctx_size=20_000).result(PATIENCE)
    prompt = [1 + i % 500 for i in range(19_000)]
    number = shared.generate(Request(prompt, 1, GREEDY), inbox)
    progress = inbox.next(Prefilling, lambda message: message.done > 0)
    assert progress.done < progress.total == 19_000
    shared.cancel(number)
    (last,) = inbox.finished(number)
    assert last.finish is FinishReason.CANCELLED and last.stats is not None
    assert last.stats.generated_tokens == 0 and 0 < last.stats.context_used < 19_000
    again = inbox.finished(shared.generate(Request(prompt[: progress.done], 1, GREEDY), inbox))[-1]
    assert again.stats is not None and again.stats.cached_tokens == progress.done - 1


@POSIX
def test_nothing_is_waited_for(inbox: Inbox, shared: Worker) -> None:
    fake(shared, "ok", ctx_size=1_000_000)
    assert shared.pid is not None
    os.kill(shared.pid, signal.SIGSTOP)
    try:
        number = shared.generate(Request([1] * 500_000), inbox)
        count = shared.count_tokens("é" * 500_000)
        assert not count.done()
    finally:
        os.kill(shared.pid, signal.SIGCONT)
    events = inbox.finished(number)
    assert text(events) == "ok" and events[-1].stats is not None
    assert events[-1].stats.prompt_tokens == 500_000 and count.result(PATIENCE) == 1_000_000


@pytest.mark.parametrize("how", ["cancel", "load"])
def test_what_ends_before_it_begins(how: str, inbox: Inbox, shared: Worker) -> None:
    fake(shared, "a" * 8000, delay=LONG, ctx_size=20_000)
    shared.count_tokens("é" * 1_000_000)  # keeps the main thread while what follows is read
    number = shared.generate(Request([1]), inbox)
    if how == "cancel":
        shared.cancel(number)
    else:
        shared.load_fake()
    assert inbox.finished(number)[-1].finish is FinishReason.CANCELLED


def test_an_answer_that_comes_after_unloading(shared: Worker) -> None:
    fake(shared)
    go = threading.Event()
    shared.generate(Request([1]), lambda message: go.wait(PATIENCE) or None)
    loaded = shared.load_fake()
    time.sleep(0.3)  # the answer is there, and waits behind the listener
    unloaded = shared.unload()
    go.set()
    unloaded.result(PATIENCE)
    assert loaded.done() and shared.facts is None


def test_a_listener_that_raises_gets_the_next_message(
    shared: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    inbox = Inbox()

    def listener(message: Message) -> None:
        inbox(message)
        raise LookupError("of the listener")

    fake(shared, "a" * 100)
    assert text(inbox.finished(shared.generate(Request([1]), listener))) == "a" * 100
    shared.unload().result(PATIENCE)
    assert len(told) == len(inbox.all) and told[0].exc_type is LookupError


def test_from_an_event_loop(shared: Worker) -> None:
    async def talk() -> str:
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Message]()
        await asyncio.wrap_future(shared.load_fake("Hello!"))
        tokens = await asyncio.wrap_future(shared.chat_tokens([{"role": "user", "content": "Hi"}]))
        shared.generate(Request(tokens), lambda m: loop.call_soon_threadsafe(inbox.put_nowait, m))
        made: list[Event] = []
        while not made or made[-1].finish is None:
            message = await asyncio.wait_for(inbox.get(), PATIENCE)
            made += message.events if isinstance(message, Events) else ()
        return text(made)

    assert asyncio.run(talk()) == "Hello!"


# Loading


def test_loading_is_told_and_given_up_for_another_model(inbox: Inbox) -> None:
    with Worker(inbox, command=worker_children.command("slow")) as worker:
        first = worker.load("a")
        assert inbox.next(Loading, lambda message: message.done > 0).total == 60_000
        second = worker.load("b")
        with pytest.raises(WorkerError, match="stopped"):
            first.result(PATIENCE)
        inbox.next(Loading)
        unloaded = worker.unload()
        with pytest.raises(WorkerError, match="stopped"):
            second.result(PATIENCE)
        unloaded.result(PATIENCE)
        fake(worker, "ok")
        long = worker.generate(Request([1]))
        worker.cancel(long)
        unfinished = worker.load("c")
        inbox.next(Loading)
        worker.close(PATIENCE)
    with pytest.raises(WorkerError):
        unfinished.result(0)
    assert not any(isinstance(message, Died) for message in inbox.all)


def test_a_model_that_is_closed_ends_its_requests(inbox: Inbox, shared: Worker) -> None:
    fake(shared, "a" * 8000, delay=LONG)
    first, second = (shared.generate(Request([1]), inbox) for _ in range(2))
    inbox.next(Events)
    fake(shared, "new")
    for number in (first, second):
        assert inbox.finished(number)[-1].finish is FinishReason.CANCELLED
    assert text(inbox.finished(shared.generate(Request([1]), inbox))) == "new"


# Deaths


@POSIX
@pytest.mark.parametrize("state", ["starting", "loading", "prefilling", "decoding", "idle"])
def test_a_child_that_is_killed(state: str, inbox: Inbox) -> None:
    command = worker_children.command("slow") if state == "loading" else None
    with Worker(inbox, command=command) as worker:
        loading = number = None
        if state in ("starting", "loading"):
            loading = worker.load("a")
        elif state == "prefilling":
            worker.load(MODEL, backend="numpy", ctx_size=20_000).result(PATIENCE)
            number = worker.generate(Request([1] * 19_000))
        else:
            fake(worker, "a" * 8000, delay=LONG)
            if state == "decoding":
                number = worker.generate(Request([1]))
        if state == "loading":
            inbox.next(Loading)
        elif state == "prefilling":
            inbox.next(Prefilling, lambda message: message.done > 0)
        elif state == "decoding":
            inbox.next(Events)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        if number is not None:
            failed = inbox.next(Failed)
            assert failed.request == number and isinstance(failed.error, WorkerError)
        died = inbox.next(Died)
        assert (died.signal, died.exit_code) == ("SIGKILL", None) and "SIGKILL" in str(died)
        if loading is not None:
            with pytest.raises(WorkerError, match="SIGKILL"):
                loading.result(0)
        assert not worker.alive and worker.facts is None and not psutil.pid_exists(worker.pid)
        assert inbox.queue.empty()
        with pytest.raises(WorkerError, match="has ended"):
            worker.generate(Request([1]))
        with pytest.raises(WorkerError, match="has ended"):
            worker.tokenize("a").result(0)
        if state == "decoding":
            worker.restart().result(PATIENCE)
            assert text(inbox.finished(worker.generate(Request([1], 3)))) == "aaa"


@POSIX
def test_a_driver_that_aborts_tells_where(inbox: Inbox) -> None:
    with Worker(inbox, command=worker_children.command("aborting")) as worker:
        fake(worker)
        worker.generate(Request([1]))
        died = inbox.next(Died)
        assert died.signal == "SIGABRT"
        assert "Fatal Python error: Aborted" in died.stderr and "acting" in "".join(died.stderr)


@POSIX
@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(3)",
        "import os, time; os.write(1, b'wgllm worker\\n\\x02\\0\\0\\0[]'); time.sleep(600)",  # an array is no message
    ],
    ids=["exits", "babbles"],
)
def test_a_child_that_is_none(program: str, inbox: Inbox) -> None:
    with Worker(inbox, command=[sys.executable, "-c", program]) as worker:
        loading = worker.load("a")
        died = inbox.next(Died)
        assert (died.exit_code, died.signal) == ((None, "SIGKILL") if "sleep" in program else (3, None))
        with pytest.raises(WorkerError):
            loading.result(PATIENCE)
    with pytest.raises(WorkerError, match="could not start"):
        Worker(command=["/no/such/program"]).load("a").result(0)


def test_what_nobody_foresaw_is_an_error_and_not_the_end(inbox: Inbox) -> None:
    with Worker(inbox, command=worker_children.command("failing")) as worker:
        fake(worker)
        for _ in range(2):
            worker.generate(Request([1]))
            error = inbox.next(Failed).error
            assert (type(error), error.exit_code) == (WorkerError, 1)
            assert str(error) == "internal error: ZeroDivisionError: nobody foresaw it"
        wait_for(lambda: sum("Traceback" in line for line in worker.stderr) == 2)


def test_what_the_child_says_stays_off_the_terminal(inbox: Inbox, capfd: pytest.CaptureFixture[str]) -> None:
    with Worker(inbox, command=worker_children.command("noisy")) as worker:
        fake(worker, "ok")
        assert text(inbox.finished(worker.generate(Request([1])))) == "ok"
        wait_for(lambda: worker.stderr.count("from a process of its own") == 3)
        assert "from Python" in worker.stderr and "from a driver\\x1b[2J" in worker.stderr
        assert max(map(len, worker.stderr)) <= 1001 and len(worker.stderr) <= 200
    assert capfd.readouterr() == ("", "")


@POSIX
def test_ctrl_c_does_not_reach_the_child(inbox: Inbox) -> None:
    with Worker(inbox) as worker:
        loaded = worker.load_fake(["a" * 8000, "b"], delay=LONG)
        assert worker.pid is not None and os.getsid(worker.pid) != os.getsid(0)
        loaded.result(PATIENCE)
        number = worker.generate(Request([1]))
        for _ in range(3):
            inbox.next(Events)
            os.kill(worker.pid, signal.SIGINT)
        worker.cancel(number)
        assert inbox.finished(number)[-1].finish is FinishReason.CANCELLED
        end = inbox.finished(worker.generate(Request([1])))
        assert text(end) == "b" and end[-1].finish is FinishReason.STOP


@pytest.mark.parametrize("state", ["new", "idle", "decoding", "deaf"])
def test_close_takes_no_longer_than_it_says(
    state: str, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(inbox, command=worker_children.command("deaf") if state == "deaf" else None)
    if state != "new":
        fake(worker, "a" * 8000, delay=LONG)
    number = None
    if state in ("decoding", "deaf"):
        number = worker.generate(Request([1]))
        inbox.next(Prefilling)
    waited: list[float] = []
    if worker._child is not None:
        wait = worker._child._ended.wait
        monkeypatch.setattr(
            worker._child._ended, "wait", lambda seconds: waited.append(seconds) or wait(seconds)
        )
    patience = 0.2 if state == "deaf" else PATIENCE
    worker.close(patience)
    assert sum(waited) <= (patience + 2 if state == "deaf" else patience)
    if number is not None:
        inbox.next(
            Failed if state == "deaf" else Events,
            lambda m: isinstance(m, Failed) or m.events[-1].finish is not None,
        )
    assert not worker.alive
    wait_for(lambda: worker.pid is None or not psutil.pid_exists(worker.pid))
    worker.close()
    if state == "idle":  # and it can be used again
        fake(worker)
        worker.close()
    assert not any(isinstance(message, Died) for message in inbox.all)


_PARENT = """
import sys
sys.path[:] = sys.argv[2:]
from tests.unit import worker_children
from wgllm.engine import Request
from wgllm.worker import Events, Loading, Worker

def listener(message):
    if isinstance(message, (Events, Loading)):
        print(worker.pid, flush=True)

state = sys.argv[1]
worker = Worker(listener, command=worker_children.command("deaf" if state == "decoding" else "slow"))
if state != "decoding":
    loading = worker.load("a")
    if state == "starting":
        print(worker.pid, flush=True)
    loading.result()
worker.load_fake("a" * 8000).result()
worker.generate(Request([1]))
print(worker.pid, flush=True)  # it is in the first step, which takes ten minutes
sys.stdin.read()
"""


@POSIX
@pytest.mark.parametrize(
    ("state", "how"),
    [("starting", "killed"), ("loading", "killed"), ("decoding", "killed"), ("decoding", "left")],
)
def test_a_child_ends_with_its_parent(state: str, how: str) -> None:
    command = [sys.executable, "-c", _PARENT, state, *(p for p in sys.path if p)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None and parent.stdin is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        if how == "killed":
            parent.kill()
        else:  # ends without closing the worker
            parent.stdin.close()
        wait_for(lambda: gone(pid))
        assert b"Traceback" not in parent.stderr.read()


# As an engine


def test_as_an_engine(shared: Worker) -> None:
    fake(shared, "Hello!", "one", "two", "three" * 1000, "four", ctx_size=20_000)
    engine = WorkerEngine(shared)
    llm = Llm(engine)
    assert (llm.ctx_size, llm.tokenize("é")) == (20_000, [0xC3, 0xA9])
    assert text(list(llm.generate("Hi", stop="!"))) == "Hello"
    one, two = llm.generate("a"), llm.generate("b")
    both = [part for pair in zip(one, two, strict=True) for part in pair]  # in turns
    assert text(both[::2]) == "one" and text(both[1::2]) == "two"
    for event in llm.generate("leave early"):
        assert event.text == "t"
        break
    assert text(list(llm.generate("Hi"))) == "four"
    assert not engine.busy and engine.step() == []
    with pytest.raises(UsageError, match="20001 tokens"):
        list(run_request(engine, Request([1] * 20_001)))
    shared.load(MODEL, backend="numpy", ctx_size=64).result(PATIENCE)
    with wgllm.load(MODEL, backend="numpy") as here:
        assert WorkerEngine(shared).tokenizer.tokenize("Hello there") == here.tokenize("Hello there")
    shared.unload().result(PATIENCE)
    with pytest.raises(UsageError, match="no model"):
        WorkerEngine(shared)


def test_an_engine_whose_process_is_ended() -> None:
    worker = Worker()
    fake(worker, "a" * 8000, delay=LONG)
    engine = WorkerEngine(worker)
    events = run_request(engine, Request([1]))
    next(events)
    worker.kill()
    with pytest.raises(WorkerError, match="was ended"):
        list(events)
    assert not engine.busy
    engine.close()
