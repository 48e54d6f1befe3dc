"""The engine in a child process, since a graphics driver may end the process that uses it.

``Worker`` starts ``wgllm.worker_process`` and never waits for it: what it is asked for goes out through a thread, what
comes back is told by another one. Answers are ``concurrent.futures`` (``asyncio.wrap_future`` awaits them); all that
comes unasked or piece by piece is a message to a listener, which is called in the reading thread and must not wait::

    loop, inbox = asyncio.get_running_loop(), asyncio.Queue()
    with Worker(lambda message: loop.call_soon_threadsafe(inbox.put_nowait, message)) as worker:
        facts = await asyncio.wrap_future(worker.load("smollm2"))
        tokens = await asyncio.wrap_future(worker.chat_tokens([{"role": "user", "content": "Hi"}]))
        number = worker.generate(Request(tokens, continuation=False))
        message = await inbox.get()  # Prefilling, Events (the last one has ``finish``), Failed, Died …

``subprocess`` and not ``multiprocessing``: the child imports nothing of the caller's main module, unpickles nothing,
and has pipes from its first instruction, so that nothing of it reaches the terminal.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wgllm.engine import Event, Request
from wgllm.errors import UsageError, WgllmError, WorkerError
from wgllm.sampling import SamplingParams
from wgllm.worker_child import Child, Died, python_command
from wgllm.worker_protocol import (
    ModelFacts,
    error_from_wire,
    error_to_wire,
    event_from_wire,
    request_to_wire,
    sampling_from_wire,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from wgllm.sampling import SamplingOptions


@dataclass(frozen=True)
class Loading:
    """How far loading is, in bytes."""

    stage: str
    """``download``, or ``weights`` as they are read."""
    label: str
    """What is downloaded."""
    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """A line for the user while a model is loaded."""

    text: str


@dataclass(frozen=True)
class Prefilling:
    """A request has begun (``done`` 0) or read ``done`` of its prompt's tokens."""

    request: int
    done: int
    total: int


@dataclass(frozen=True)
class Events:
    """What the engine made since the last message, in order; a request's last event has ``finish``."""

    request: int
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Failed:
    """A request ended with an error instead of a last event."""

    request: int
    error: WgllmError


Message = Loading | Notice | Prefilling | Events | Failed | Died
Listener = Callable[[Message], None]


@dataclass(frozen=True)
class _Call:
    """Who waits for an answer, and what the answer's JSON means."""

    future: Future[Any]
    decode: Callable[[Any], Any]

    def fail(self, error: WgllmError) -> None:
        self.future.set_exception(error)


@dataclass(frozen=True)
class _Generation:
    number: int
    listener: Listener

    def tell(self, message: Prefilling | Events | Failed) -> None:
        _tell(self.listener, message)

    def fail(self, error: WgllmError) -> None:
        self.tell(Failed(self.number, error))


_Child = Child[_Call | _Generation]


# Options of ``load`` that the numpy backend refuses.
_OF_A_CARD = ("device", "gpu_layers", "device_memory")


class Worker:
    """A model in a process of its own. Methods may be called from any thread; only ``close`` waits.

    Futures raise what the same call of an ``Llm`` raises; WorkerError where no process runs, or when it ends.
    """

    def __init__(
        self, listener: Listener = lambda message: None, *, command: Sequence[str] | None = None
    ) -> None:
        """No process starts before a model is loaded. ``command`` starts the child some other way, as a program
        without a Python interpreter of its own must."""
        self._listener = listener
        self._command = command
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._last: tuple[str, dict[str, Any]] | None = None
        self._facts: ModelFacts | None = None
        self._current: object = None
        """Of all loads the one that counts; None after ``unload``."""

    @property
    def alive(self) -> bool:
        """Whether a process runs, with or without a model."""
        return self._child is not None and self._child.running

    @property
    def facts(self) -> ModelFacts | None:
        """Of the model that is loaded."""
        return self._facts if self.alive else None

    @property
    def pid(self) -> int | None:
        """The process's number, also after its end; None before the first start."""
        return None if self._child is None else self._child.pid

    @property
    def stderr(self) -> tuple[str, ...]:
        """The last lines that the process wrote there (the driver's words), without control characters."""
        return () if self._child is None else self._child.stderr

    def load(self, model: str | os.PathLike[str], **options: Any) -> Future[ModelFacts]:
        """Loads a model, in a new process where none runs. What was loaded or being loaded before is given up.

        ``options`` are those of ``wgllm.load`` but the two for progress, as plain data.
        """
        return self._load("load", {"model": os.fspath(model), "options": options})

    def load_fake(
        self,
        replies: str | Sequence[str] = "Hello!",
        *,
        delay: float = 0.0,
        ctx_size: int = 8192,
        chat_template: str = "chatml",
        error: WgllmError | None = None,
    ) -> Future[ModelFacts]:
        """Loads a ``FakeEngine`` instead of a model; ``chat_template`` is a built-in one's name or a text."""
        return self._load(
            "load_fake",
            {
                "replies": replies if isinstance(replies, str) else list(replies),
                "delay": delay,
                "ctx_size": ctx_size,
                "chat_template": chat_template,
                "error": None if error is None else error_to_wire(error),
            },
        )

    def restart(self, **changes: Any) -> Future[ModelFacts]:
        """Kills the process if one runs, and loads the last model in a new one, with options changed.

        ``restart(backend="numpy")`` goes on without the graphics card: what was asked of one is left out.
        """
        if self._last is None:
            raise UsageError("no model has been loaded: there is nothing to start again")
        method, arguments = self._last
        if method == "load":
            options = {**arguments["options"], **changes}
            if options.get("backend") == "numpy":
                options = {k: v for k, v in options.items() if k not in _OF_A_CARD or k in changes}
            arguments = {**arguments, "options": options}
        self.kill()
        return self._load(method, arguments)

    def unload(self) -> Future[None]:
        """Closes the model, or stops loading one (whose future then raises WorkerError); the process stays."""
        self._facts = self._current = None
        return self._call("unload", {})

    def generate(self, request: Request, listener: Listener | None = None) -> int:
        """Queues a request; returns its number. ``listener`` gets its messages in place of the worker's own.

        A request that can't run ends with ``Failed``. Raises WorkerError when no process runs.
        """
        number = next(self._numbers)
        message = {"type": "generate", "id": number, "request": request_to_wire(request)}
        self._running().send(message, number, _Generation(number, listener or self._listener))
        return number

    def cancel(self, request: int) -> None:
        """Ends a request, within 200 ms while it computes; its last event says so. Does nothing after its end."""
        child = self._child
        if child is not None and child.waiter(request) is not None:
            with contextlib.suppress(WorkerError):
                child.send({"type": "cancel", "id": request})

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> Future[list[int]]:
        """As ``Llm.tokenize``. All such calls are answered between two steps of the engine."""
        arguments = {"text": text, "add_special": add_special, "parse_special": parse_special}
        return self._call("tokenize", arguments)

    def count_tokens(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> Future[int]:
        arguments = {"text": text, "add_special": add_special, "parse_special": parse_special}
        return self._call("count_tokens", arguments)

    def chat_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        parse_special: bool = False,
    ) -> Future[list[int]]:
        """As ``Llm.chat_tokens``: the prompt that the model's chat template makes of ``messages``."""
        arguments = {"messages": list(messages), "tools": tools, "parse_special": parse_special}
        return self._call("chat_tokens", arguments)

    def detokenize(
        self, ids: Sequence[int], *, skip_special: bool = False, continuation: bool = False
    ) -> Future[str]:
        arguments = {"ids": list(ids), "skip_special": skip_special, "continuation": continuation}
        return self._call("detokenize", arguments)

    def token_texts(self, ids: Sequence[int]) -> Future[list[str]]:
        """Each token's own text: for a list of candidates, as ``Event.top_logprobs`` has them."""
        return self._call("token_texts", {"ids": list(ids)})

    def token_bytes(self, ids: Sequence[int]) -> Future[list[bytes]]:
        """Each token's own bytes, which need not be whole characters."""
        return self._call("token_bytes", {"ids": list(ids)}, lambda made: [bytes(b) for b in made])

    def sampling_params(self, **options: Unpack[SamplingOptions]) -> Future[SamplingParams]:
        """As ``Llm.sampling_params``: ``options``, else what the model's file says, else the defaults."""
        return self._call("sampling_params", dict(options), sampling_from_wire)

    def kill(self) -> None:
        """Ends the process at once, without waiting: what runs fails, and no ``Died`` is told."""
        if self._child is not None:
            self._child.kill()

    def close(self, timeout: float = 2.0) -> None:
        """Ends the process: asks, after ``timeout`` seconds terminates, at last kills; takes 2 s more at most.

        What still runs is cancelled or fails. A later ``load`` starts a new process.
        """
        if self._child is not None:
            self._child.stop({"type": "stop"}, timeout)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> _Child:
        if self._child is None:
            raise WorkerError("no process runs: load a model first")
        return self._child

    def _load(self, method: str, arguments: dict[str, Any]) -> Future[ModelFacts]:
        with self._lock:
            self._last = method, arguments
            self._facts = None
            self._current = this = object()
            if not self.alive:
                try:
                    self._child = Child(self._command or python_command(), self._take, self._ended)
                except WorkerError as error:
                    return _failed(error)

        def decode(value: dict[str, Any]) -> ModelFacts:
            facts = ModelFacts(**value)
            if this is self._current:
                self._facts = facts
            return facts

        return self._call(method, arguments, decode)

    def _call(
        self, method: str, arguments: dict[str, Any], decode: Callable[[Any], Any] = lambda value: value
    ) -> Future[Any]:
        number = next(self._numbers)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # what has been sent is answered: it can't be cancelled
        message = {"type": "call", "id": number, "method": method, "arguments": arguments}
        try:
            self._running().send(message, number, _Call(future, decode))
        except WgllmError as error:
            return _failed(error)
        return future

    # In the child's reading thread

    def _take(self, child: _Child, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "events":
            for request, events in groupby(map(event_from_wire, message["events"]), lambda e: e.request):
                made = tuple(events)
                generation = child.waiter(request) if made[-1].finish is None else child.answered(request)
                assert isinstance(generation, _Generation)
                generation.tell(Events(request, made))
        elif kind == "prefilling":
            generation = child.waiter(message["id"])
            assert isinstance(generation, _Generation)
            generation.tell(Prefilling(message["id"], message["done"], message["total"]))
        elif kind == "loading":
            told = Loading(message["stage"], message["label"], message["done"], message["total"])
            _tell(self._listener, told)
        elif kind == "notice":
            _tell(self._listener, Notice(message["text"]))
        elif kind == "reply":
            call = child.answered(message["id"])
            assert isinstance(call, _Call)
            call.future.set_result(call.decode(message["value"]))
        else:  # error of a call, failed generation
            waiter = child.answered(message["id"])
            assert waiter is not None
            waiter.fail(error_from_wire(message["error"]))

    def _ended(self, died: Died) -> None:
        _tell(self._listener, died)


def _failed(error: WgllmError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _tell(listener: Listener, message: Message) -> None:
    """An exception of the listener is told as any thread's is, and the next message comes all the same."""
    try:
        listener(message)
    except Exception as error:
        told = type(error), error, error.__traceback__, threading.current_thread()
        threading.excepthook(threading.ExceptHookArgs(told))
