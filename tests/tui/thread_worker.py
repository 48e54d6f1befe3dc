"""A worker whose engine runs in a thread of this process: what the application needs of one, without a child."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from wgllm.builtin_templates import template_source
from wgllm.engine import Event, Request
from wgllm.errors import WgllmError, WorkerError
from wgllm.fake import FakeEngine
from wgllm.llm import Llm
from wgllm.sampling import SamplingParams
from wgllm.worker import Died, Events, Failed, Listener, Loading, Prefilling
from wgllm.worker_process import model_facts
from wgllm.worker_protocol import ModelFacts


class ThreadWorker:
    """Answers with the replies of a ``FakeEngine``. ``hold`` keeps loading until it is set."""

    def __init__(self, listener: Listener, make: Callable[[], FakeEngine]) -> None:
        self.listener = listener
        self.make = make
        self.hold = threading.Event()
        self.hold.set()
        self.load_error: WgllmError | None = None
        self.loads: list[tuple[str, dict[str, Any]]] = []
        self.engine: FakeEngine | None = None
        self.facts: ModelFacts | None = None
        self.prefill_steps = 0
        self._llm: Llm | None = None
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._numbers: dict[int, int] = {}
        self._count = 0
        self.holds: list[threading.Event] = [self.hold]
        """What is set when it is closed, so that nothing waits for ever."""
        self._closed = False
        self._cancelled: set[int] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._llm is not None

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            job()

    def _call(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except WgllmError as error:
                future.set_exception(error)

        self._work.put(job)
        return future

    def load(self, model: str, **options: Any) -> Future[ModelFacts]:
        self.loads.append((model, options))
        self.facts = None
        return self._call(lambda: self._load(options))

    def _load(self, options: dict[str, Any]) -> ModelFacts:
        self.hold.wait()
        if self._closed:
            raise WorkerError("it was closed")
        self.listener(Loading("weights", "", 50, 100))
        if self.load_error is not None:
            raise self.load_error
        self.engine = self.make()
        if options.get("ctx_size"):
            self.engine._ctx_size = options["ctx_size"]
        self._llm = Llm(self.engine, where="numpy on the CPU (a test)")
        self._llm.use_template(template_source("chatml"))
        self.facts = model_facts(self._llm, 0.0)
        return self.facts

    def restart(self, **changes: Any) -> Future[ModelFacts]:
        model, options = self.loads[-1]
        return self.load(model, **{**options, **changes})

    def unload(self) -> Future[None]:
        return self._call(lambda: None)

    def die(self) -> None:
        """As when the child is killed: what runs fails, then comes the news."""
        self._llm = self.facts = None
        for number in list(self._numbers):
            self.listener(Failed(number, WorkerError("the model's process ended by itself (SIGKILL)")))
        self._numbers.clear()
        self.listener(Died(None, "SIGKILL", ("words of a driver",)))

    def generate(self, request: Request) -> int:
        number = self._count
        self._count += 1
        self._numbers[number] = -1
        self._work.put(lambda: self._generate(number, request))
        return number

    def _generate(self, number: int, request: Request) -> None:
        engine = self.engine
        assert engine is not None
        try:
            self._numbers[number] = inner = engine.submit(request)
            if number in self._cancelled:
                engine.cancel(inner)
            total = len(request.tokens)
            for done in range(self.prefill_steps + 1):
                self.listener(Prefilling(number, done * total // max(1, self.prefill_steps), total))
            while engine.busy and number in self._numbers:
                made = tuple(self._own(event, number) for event in engine.step() if event.request == inner)
                if made:
                    self.listener(Events(number, made))
        except WgllmError as error:
            self.listener(Failed(number, error))
        self._numbers.pop(number, None)

    @staticmethod
    def _own(event: Event, number: int) -> Event:
        from dataclasses import replace

        return replace(event, request=number)

    def cancel(self, request: int) -> None:
        self._cancelled.add(request)  # it may not have got to the engine yet
        if self.engine is not None and request in self._numbers:
            self.engine.cancel(self._numbers[request])

    def _model(self) -> Llm:
        if self._llm is None:
            raise WorkerError("no model is loaded")
        return self._llm

    def count_tokens(self, text: str) -> Future[int]:
        return self._call(lambda: len(self._model().tokenize(text)))

    def tokenize(self, text: str, *, add_special: bool = True) -> Future[list[int]]:
        return self._call(lambda: self._model().tokenize(text, add_special=add_special))

    def chat_tokens(self, messages: Sequence[Mapping[str, Any]]) -> Future[list[int]]:
        return self._call(lambda: self._model().chat_tokens(messages))

    def detokenize(
        self, ids: Sequence[int], *, skip_special: bool = False, continuation: bool = False
    ) -> Future[str]:
        return self._call(lambda: self._model().detokenize(ids))

    def token_texts(self, ids: Sequence[int]) -> Future[list[str]]:
        return self._call(lambda: [self._model().detokenize([i]) for i in ids])

    def sampling_params(self, **options: Any) -> Future[SamplingParams]:
        return self._call(lambda: self._model().sampling_params(**options))

    def close(self, timeout: float = 2.0) -> None:
        self._numbers.clear()
        self._closed = True
        for held in self.holds:
            held.set()
        if self.engine is not None:
            for number in range(len(self.engine.requests)):
                self.engine.cancel(number)
        self._work.put(None)
