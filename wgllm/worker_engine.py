"""A worker where an engine is wanted: a blocking client."""

from __future__ import annotations

import queue
from functools import cached_property
from typing import TYPE_CHECKING

from wgllm.engine import Event, Request
from wgllm.errors import UsageError
from wgllm.fake import ByteTokenizer
from wgllm.worker import Events, Failed

if TYPE_CHECKING:
    from wgllm.tokenizer import Tokenizer
    from wgllm.worker import Message, Worker


class WorkerEngine:
    """A worker as an engine, for ``run_request`` and ``Llm``: ``step`` waits for what the child makes next.

    Requests come from one thread. Errors, of which a submitted request may die too, are raised by ``step``.
    """

    def __init__(self, worker: Worker) -> None:
        """Raises UsageError when ``worker`` has not loaded a model."""
        facts = worker.facts
        if facts is None:
            raise UsageError("the worker has no model loaded")
        self.worker = worker
        self.facts = facts
        self.mail: dict[int, list[Event]] = {}
        self._made: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._live: set[int] = set()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read again in this process, without options that change the file's metadata."""
        from wgllm.tokenizer import load_tokenizer

        return ByteTokenizer() if self.facts.path is None else load_tokenizer(self.facts.path)

    @property
    def ctx_size(self) -> int:
        return self.facts.ctx_size

    @property
    def busy(self) -> bool:
        return bool(self._live)

    def submit(self, request: Request) -> int:
        number = self.worker.generate(request, self._made.put)
        self._live.add(number)
        return number

    def step(self) -> list[Event]:
        if not self._live:
            return []
        message = self._made.get()
        if isinstance(message, Failed):
            self._live.discard(message.request)
            raise message.error
        if not isinstance(message, Events):
            return []
        if message.events[-1].finish is not None:
            self._live.discard(message.request)
        return list(message.events)

    def cancel(self, request: int) -> None:
        self.worker.cancel(request)

    def close(self) -> None:
        self.worker.close()
