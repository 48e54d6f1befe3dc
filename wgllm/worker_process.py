"""The child of a worker: a model with its engine, messages through two pipes. ``wgllm.worker`` starts it.

The main thread loads and computes, and looks for messages between two steps of the engine; a second one reads them, so
that a cancel is seen within a step, and ends the process when the parent does; a third one sends.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, NoReturn

from wgllm import llm as interface
from wgllm.builtin_templates import template_source
from wgllm.engine import Engine, Event
from wgllm.errors import UsageError, WorkerError
from wgllm.fake import FakeEngine
from wgllm.file_facts import FileFacts, file_facts
from wgllm.llm import Llm
from wgllm.worker_outbox import Outbox, end_with_group
from wgllm.worker_protocol import (
    GREETING,
    Message,
    ModelFacts,
    error_from_wire,
    error_to_wire,
    event_to_wire,
    read_message,
    request_from_wire,
    sampling_to_wire,
)


class LoadingStopped(BaseException):
    """Raised where loading tells its progress, as a Ctrl-C would be: nothing on the way may take it for a failure."""


class _DownloadProgress:
    """``hub_progress.Progress`` as messages."""

    def __init__(self, outbox: Outbox, check: Callable[[], None]) -> None:
        self._outbox, self._check = outbox, check
        self._label, self._total = "", 0

    def message(self, text: str) -> None:
        self._outbox.post({"type": "notice", "text": text})
        self._check()

    def start(self, label: str, total: int, done: int) -> None:
        self._label, self._total = label, total
        self.update(done)

    def update(self, done: int) -> None:
        self._outbox.post(
            {"type": "loading", "stage": "download", "label": self._label, "done": done, "total": self._total}
        )
        self._check()

    def finish(self) -> None:
        pass


@dataclass
class _Live:
    """A request that the engine has."""

    id: int
    """The parent's number."""
    prompt_tokens: int
    begun: bool = False
    generated: bool = False


class WorkerProcess:
    """Does what the parent asks for, until it says stop."""

    def __init__(self, commands: BinaryIO, replies: BinaryIO) -> None:
        self._commands = commands
        self._outbox = Outbox(replies)
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._llm: Llm | None = None
        self._lock = threading.Lock()
        """For what the reading thread sees too: the next three."""
        self._live: dict[int, _Live] = {}
        """By the engine's number, in the order in which it runs them."""
        self._cancelled: set[int] = set()
        self._leaving = 0
        """Messages on their way to the main thread that end a model, or its loading."""
        self._calls: dict[str, Callable[..., Any]] = {
            "load": self._load,
            "load_fake": self._load_fake,
            "unload": self._unload,
            "tokenize": lambda **arguments: self._model().tokenize(**arguments),
            "count_tokens": lambda **arguments: len(self._model().tokenize(**arguments)),
            "chat_tokens": lambda **arguments: self._model().chat_tokens(**arguments),
            "detokenize": lambda **arguments: self._model().tokenizer.detokenize(**arguments),
            "token_texts": self._token_texts,
            "token_bytes": self._token_bytes,
            "sampling_params": self._sampling_params,
        }
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def run(self) -> None:
        while True:
            if (message := self._next()) is None:
                self._step()
                continue
            kind = message["type"]
            if kind == "stop":
                break
            if kind == "call":
                self._call(message)
            elif kind == "generate":
                self._generate(message)
            else:  # a cancel, already done; its request has been submitted by now
                with self._lock:
                    if all(live.id != message["id"] for live in self._live.values()):
                        self._cancelled.discard(message["id"])
        self._close_model()
        self._outbox.close()

    def _next(self) -> Message | None:
        """The next message, which is waited for unless there is something to compute."""
        try:
            return self._inbox.get(block=not self._live)
        except queue.Empty:
            return None

    # In the reading thread

    def _read(self) -> None:
        try:
            while (message := read_message(self._commands)) is not None:
                if message["type"] == "cancel":
                    with self._lock:
                        self._cancelled.add(message["id"])
                        self._cancel(message["id"])
                elif message["type"] == "stop" or _ends_model(message):
                    with self._lock:
                        self._leaving += 1
                        self._cancel()
                self._inbox.put(message)
        except BaseException:
            traceback.print_exc()
        end_with_group()

    def _cancel(self, request: int | None = None) -> None:
        """Ends one request of the parent's, or all."""
        for number, live in self._live.items():
            if request in (None, live.id) and self._llm is not None:
                self._llm.engine.cancel(number)

    # In the main thread

    def _call(self, message: Message) -> None:
        if _ends_model(message):
            self._close_model()
            with self._lock:
                self._leaving -= 1
        try:
            value = self._calls[message["method"]](**message["arguments"])
        except LoadingStopped:
            wire = error_to_wire(WorkerError("loading was stopped"))
            self._outbox.post({"type": "error", "id": message["id"], "error": wire})
        except Exception as error:
            self._outbox.post({"type": "error", "id": message["id"], "error": _told(error)})
        else:
            self._outbox.post({"type": "reply", "id": message["id"], "value": value})

    def _generate(self, message: Message) -> None:
        try:
            request = request_from_wire(message["request"])
            engine = self._model().engine
            number = engine.submit(request)
        except Exception as error:
            self._fail(message["id"], error)
            return
        with self._lock:
            self._live[number] = _Live(message["id"], len(request.tokens) + len(request.given))
            if message["id"] in self._cancelled:
                engine.cancel(number)

    def _step(self) -> None:
        engine = self._model().engine
        number, live = next(iter(self._live.items()))
        if not live.begun:
            live.begun = True
            self._tell_prefill(live, engine.cached_tokens(number) if isinstance(engine, Engine) else 0)
        try:
            events = engine.step()
        except Exception as error:
            self._end(number)
            self._fail(live.id, error)
            return
        if events:
            self._send(events)
        elif isinstance(engine, Engine) and not live.generated:
            self._tell_prefill(live, min(engine.cache.length(0), live.prompt_tokens))

    def _send(self, events: Sequence[Event]) -> None:
        wires = []
        for event in events:
            live = self._live[event.request]
            live.generated = True
            wires.append(event_to_wire(event, live.id))
            if event.finish is not None:
                self._end(event.request)
        self._outbox.events(wires)

    def _tell_prefill(self, live: _Live, done: int) -> None:
        self._outbox.post({"type": "prefilling", "id": live.id, "done": done, "total": live.prompt_tokens})

    def _end(self, number: int) -> None:
        with self._lock:
            self._cancelled.discard(self._live.pop(number).id)

    def _fail(self, request: int, error: Exception) -> None:
        self._outbox.post({"type": "failed", "id": request, "error": _told(error)})

    def _model(self) -> Llm:
        if self._llm is None:
            raise UsageError("no model is loaded")
        return self._llm

    def _load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        progress: dict[str, Any] = {
            "progress": self._weights_read,
            "download_progress": _DownloadProgress(self._outbox, self._check_loading),
        }
        try:
            inspect.signature(interface.load).bind(model, **options, **progress)
        except TypeError as error:
            raise UsageError(f"options of a model: {error}") from None
        return self._loaded(lambda: interface.load(model, **options, **progress))

    def _load_fake(
        self,
        replies: str | list[str],
        delay: float,
        ctx_size: int,
        chat_template: str,
        error: dict[str, Any] | None,
    ) -> dict[str, Any]:
        def make() -> Llm:
            raised = None if error is None else error_from_wire(error)
            llm = Llm(
                FakeEngine(replies, delay=delay, ctx_size=ctx_size, error=raised), where="without a model"
            )
            llm.use_template(template_source(chat_template))
            return llm

        return self._loaded(make)

    def _loaded(self, load: Callable[[], Llm]) -> dict[str, Any]:
        started = time.perf_counter()
        self._check_loading()
        llm = load()
        try:
            facts = model_facts(llm, time.perf_counter() - started)
        except BaseException:
            llm.close()
            raise
        with self._lock:
            self._llm = llm
        return asdict(facts)

    def _unload(self) -> None:
        """The model has been closed, as before a load."""

    def _weights_read(self, done: int, total: int) -> None:
        self._outbox.post({"type": "loading", "stage": "weights", "label": "", "done": done, "total": total})
        self._check_loading()

    def _check_loading(self) -> None:
        if self._leaving:
            raise LoadingStopped

    def _close_model(self) -> None:
        """Ends all requests, which the reading thread has cancelled but for those that came later."""
        if self._llm is None:
            return
        for number in self._live:
            self._llm.engine.cancel(number)
        while self._live:
            self._step()
        with self._lock:
            llm, self._llm = self._llm, None
        llm.close()

    def _sampling_params(self, **options: Any) -> dict[str, Any]:
        if options.get("logit_bias"):  # JSON's keys are texts
            options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
        return sampling_to_wire(self._model().sampling_params(**options))

    def _token_texts(self, ids: list[int]) -> list[str]:
        tokenizer = self._model().tokenizer
        # Embeddings may have rows beyond the tokenizer's last token.
        return [
            tokenizer.detokenize([i], continuation=True) if i < tokenizer.vocab_size else f"#{i}" for i in ids
        ]

    def _token_bytes(self, ids: list[int]) -> list[list[int]]:
        tokenizer = self._model().tokenizer
        return [list(tokenizer.token_bytes(i)) if i < tokenizer.vocab_size else [] for i in ids]


def model_facts(llm: Llm, load_seconds: float) -> ModelFacts:
    """What ``llm`` and its file tell of the model."""
    file = llm.file
    of_file = FileFacts("fake", "", "", 0, 0, None) if file is None else file_facts(file)
    return ModelFacts(
        **asdict(of_file),
        path=None if file is None else os.fspath(file.path),
        ctx_size=llm.ctx_size,
        n_ctx_train=llm.model.config.n_ctx_train if llm.model is not None else llm.ctx_size,
        vocab_size=llm.tokenizer.vocab_size,
        kv_type=llm.kv_type,
        where=llm.where,
        has_template=llm.has_template,
        load_seconds=load_seconds,
    )


def _ends_model(message: Message) -> bool:
    return message["type"] == "call" and message["method"] in ("load", "load_fake", "unload")


def _told(error: Exception) -> dict[str, Any]:
    """The error for the parent; the traceback of one that nobody foresaw goes to stderr, which it keeps."""
    wire = error_to_wire(error)
    if wire["class"] == "WorkerError":
        traceback.print_exception(error)
    return wire


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """stdin and stdout for messages alone: what else reads finds nothing, what else is printed goes to stderr."""
    commands, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return commands, replies


def main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    commands, replies = take_pipes()
    faulthandler.enable()  # says on stderr where a driver ended the process
    replies.write(GREETING)
    replies.flush()
    WorkerProcess(commands, replies).run()
    # The model is closed; a driver that crashes when Python takes the rest down would look like a death.
    os._exit(0)
