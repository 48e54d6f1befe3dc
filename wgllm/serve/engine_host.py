"""The model for many clients: one request at a time, the others in a queue, and the process that computes kept alive.

Belongs to one event loop; all work is in the worker's process, so that nothing here waits but for messages::

    host = EngineHost("smollm2", {}, queue_size=8)
    await host.generate(Ask(prompt), reply)  # prompt(worker) awaits tokens, reply gets what is made

Requests whose result is meant to be repeatable (greedy ones, and those with a seed) are ``exact``: of what the cache
holds they use whole steps of a prompt only, so that who asked what before does not change a single bit of them. In a
chat that costs reading the last reply and the last part of a step again. All others use whatever the cache holds, and
so do those whose client asks for it (``cache_prompt``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from wgllm.engine import Event, FinishReason, Request
from wgllm.errors import ModelFileError, UsageError, WgllmError
from wgllm.sampling import SamplingOptions, SamplingParams
from wgllm.serve.engine_child import EngineChild, Progress
from wgllm.serve.refusals import ContextExceeded, EngineDied, HostClosed, PromptRefused, Refused
from wgllm.serve.turns import Place, Turns
from wgllm.worker import Events, Failed, Listener, Message, Prefilling, Worker
from wgllm.worker_protocol import ModelFacts

# Cancels are heard between two operators of a step, prompts are made in moments.
_UNHEARD_SECONDS = 30.0
# A step takes seconds, and what takes longer uses processors or tells how far it is.
_SILENT_SECONDS = 180.0


@dataclass(frozen=True)
class Ask:
    """What is to be generated."""

    prompt: Callable[[Worker], Awaitable[list[int]]]
    """Has the prompt's tokens made, in the worker's process; called again when that died."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """``SamplingOptions``; what is not given is what the model's file says, else the defaults."""
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    logprobs: int = 0
    ignore_eos: bool = False
    continuation: bool = False
    """As in ``Request``."""
    exact: bool | None = None
    """As in ``Request``; None: if it is greedy or has a seed."""


class Reply(Protocol):
    """Who gets what is generated. No method may wait for a client."""

    def tell(self, progress: Progress) -> None:
        """How far the request is, before its first events."""

    async def add(self, events: Sequence[Event]) -> None:
        """What was made since the last call; the last event has ``finish``."""

    def again(self) -> bool:
        """All is to begin anew, since the process died; False when it is too late for that."""


class EngineHost:
    """An engine in a process of its own, and the queue before it."""

    def __init__(
        self,
        model: str,
        options: Mapping[str, Any],
        *,
        queue_size: int,
        make_worker: Callable[[Listener], Worker] = Worker,
        unheard_seconds: float = _UNHEARD_SECONDS,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        """``options`` are those of ``wgllm.load`` as plain data. At most ``queue_size`` requests wait. A process that
        does nothing for ``unheard_seconds``, not even end what was given up, is ended and started again; so is one that
        does and tells nothing for ``silent_seconds`` while it loads or replies."""
        self._child = EngineChild(
            model, options, make_worker, unheard_seconds=unheard_seconds, silent_seconds=silent_seconds
        )
        self._turns = Turns(queue_size)
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._bytes: dict[int, bytes] = {}
        """Of tokens that a client has asked about."""

    @property
    def worker(self) -> Worker:
        return self._child.worker

    async def start(self) -> None:
        """Begins to load the model, which else is done for the first request. Does not wait for it."""
        self._child.load_soon()

    async def loaded(self) -> None:
        """Waits until the model is loaded, which begins unless it has. Raises the error of loading that failed."""
        await self._child.loaded()

    async def aclose(self) -> None:
        """Ends what runs and waits, and the process; within 3 s, mostly much less."""
        self._closed = True
        for task in self._running:
            task.cancel()
        await self._child.aclose()

    def status(self) -> dict[str, Any]:
        """What ``/health`` tells: ``state`` is idle, loading, ready or failed."""
        child = self._child
        facts, progress = child.worker.facts, child.progress
        told = None
        if progress is not None:
            told = {"stage": progress.stage, "done": progress.done, "total": progress.total}
            told["label"] = progress.label
        return {
            "state": child.state,
            "where": None if facts is None else facts.where,
            "ctx_size": None if facts is None else facts.ctx_size,
            "running": self._turns.running,
            "waiting": self._turns.waiting,
            "restarts": child.restarts,
            "progress": told,
            "message": child.message,
        }

    async def generate(self, ask: Ask, reply: Reply) -> None:
        """Gives ``reply`` all that is made of ``ask``; cancelling the caller ends it within a token.

        A request of whose reply nothing has been sent is tried a second time when the process dies. Raises QueueFull,
        NotLoaded, ContextExceeded, PromptRefused, EngineDied, HostClosed, or what the engine raises.
        """
        if self._closed:
            raise HostClosed("the server is shutting down")

        def moved(done: int, total: int) -> None:
            reply.tell(Progress("queue", done, total))

        task = asyncio.current_task()
        assert task is not None
        place = self._turns.enter(moved)
        self._running.add(task)
        try:
            with self._child.watched(reply.tell):
                await place.wait()
            await self._try_twice(ask, reply, place)
        except asyncio.CancelledError:
            if self._closed:  # then it was not the caller who gave up
                raise HostClosed("the server is shutting down") from None
            raise
        finally:
            self._running.discard(task)
            place.leave()

    async def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Each token's own bytes."""
        unknown = sorted({i for i in ids if i not in self._bytes})
        if unknown:
            made = await self._child.ask(lambda worker: worker.token_bytes(unknown))
            self._bytes.update(zip(unknown, made, strict=True))
        return [self._bytes[i] for i in ids]

    async def _try_twice(self, ask: Ask, reply: Reply, place: Place) -> None:
        for last in (False, True):
            start = self._child.starts
            try:
                facts = await self._child.ready(reply.tell)
                start = self._child.starts
                await self._run(await self._request(ask, facts, place, start), reply, start)
            except WgllmError as error:
                if not self._child.broken_by(error, start):
                    raise
                if last or not reply.again():
                    raise EngineDied(f"{error}; it is started again") from None
            else:
                self._child.worked()
                return

    async def _request(self, ask: Ask, facts: ModelFacts, place: Place, start: int) -> Request:
        options = cast("SamplingOptions", dict(ask.sampling))
        sampling = await self._child.ask(lambda worker: worker.sampling_params(**options))
        if (token := max(sampling.logit_bias, default=-1)) >= facts.vocab_size:
            message = f"logit_bias: token id {token} is outside the vocabulary of {facts.vocab_size}"
            raise Refused(400, message, param="logit_bias")
        # The process makes it even if nobody waits any more, and nothing else meanwhile.
        making = asyncio.ensure_future(ask.prompt(self._child.worker))
        place.hold(making)
        try:
            tokens = await asyncio.shield(making)
        except asyncio.CancelledError:
            self._child.give_up(making, start)
            raise
        except ModelFileError as error:  # of the template, which other messages might not have met
            raise PromptRefused(str(error)) from None
        if not tokens:
            raise UsageError("the prompt is empty: there is nothing to go on from")
        if len(tokens) > facts.ctx_size:
            raise ContextExceeded(len(tokens), facts.ctx_size)
        return Request(
            tokens,
            max_tokens=ask.max_tokens,
            sampling=sampling,
            stop=tuple(ask.stop),
            ignore_eos=ask.ignore_eos,
            logprobs=ask.logprobs,
            special=ask.ignore_eos,
            continuation=ask.continuation,
            exact=_repeatable(sampling) if ask.exact is None else ask.exact,
        )

    async def _run(self, request: Request, reply: Reply, start: int) -> None:
        inbox: asyncio.Queue[Message] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def heard(message: Message) -> None:
            self._child.sign_of_life()
            inbox.put_nowait(message)
            last = isinstance(message, Failed) or (isinstance(message, Events) and message.events[-1].finish)
            if last and not ended.done():
                ended.set_result(None)

        def listen(message: Message) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(heard, message)

        number = self._child.worker.generate(request, listen)
        self._child.watch(ended, start)
        finish: FinishReason | None = None
        try:
            while finish is None:
                message = await inbox.get()
                if isinstance(message, Failed):
                    raise message.error
                if isinstance(message, Prefilling):
                    reply.tell(Progress("prefill", message.done, message.total))
                    continue
                assert isinstance(message, Events)
                finish = message.events[-1].finish
                if finish is FinishReason.CANCELLED:  # by the process's end
                    raise HostClosed("the server is shutting down")
                await reply.add(message.events)
        finally:
            if not ended.done():
                self._child.worker.cancel(number)
                self._child.give_up(ended, start)


def _repeatable(sampling: SamplingParams) -> bool:
    return sampling.greedy or (sampling.seed is not None and sampling.seed >= 0)
