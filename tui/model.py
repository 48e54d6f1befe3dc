"""The worker as the application uses it: calls are awaited, what comes unasked becomes Textual's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from textual.message import Message

from wgllm.engine import Event, Request
from wgllm.errors import WgllmError
from wgllm.sampling import SamplingParams
from wgllm.tui.text import clean_line
from wgllm.worker import Events, Failed, Listener, Loading, Notice, Prefilling, Worker
from wgllm.worker import Message as WorkerMessage
from wgllm.worker_child import Died
from wgllm.worker_protocol import ModelFacts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from wgllm.sampling import SamplingOptions


class WorkerLike(Protocol):
    """What is used of a ``Worker``, so that tests can run an engine in a thread."""

    @property
    def facts(self) -> ModelFacts | None: ...
    @property
    def alive(self) -> bool: ...
    def load(self, model: str, **options: Any) -> Future[ModelFacts]: ...
    def restart(self, **changes: Any) -> Future[ModelFacts]: ...
    def unload(self) -> Future[None]: ...
    def generate(self, request: Request) -> int: ...
    def cancel(self, request: int) -> None: ...
    def count_tokens(self, text: str) -> Future[int]: ...
    def tokenize(self, text: str, *, add_special: bool = ...) -> Future[list[int]]: ...
    def chat_tokens(self, messages: Sequence[Mapping[str, Any]]) -> Future[list[int]]: ...
    def token_texts(self, ids: Sequence[int]) -> Future[list[str]]: ...
    def detokenize(self, ids: Sequence[int], *, skip_special: bool = ...) -> Future[str]: ...
    def sampling_params(self, **options: Unpack[SamplingOptions]) -> Future[SamplingParams]: ...
    def close(self, timeout: float = 2.0) -> None: ...


WorkerMaker = Callable[[Listener], WorkerLike]


@dataclass
class ModelProgress(Message):
    """How far loading is, in bytes."""

    stage: str
    label: str
    done: int
    total: int


@dataclass
class ModelNotice(Message):
    """A line for the user."""

    text: str


@dataclass
class PromptProgress(Message):
    """Tokens of a prompt that have been read."""

    request: int
    done: int
    total: int


@dataclass
class ReplyEvents(Message):
    """What was generated since the last one."""

    request: int
    events: tuple[Event, ...]


@dataclass
class ReplyFailed(Message):
    """A generation ended with an error."""

    request: int
    error: WgllmError


@dataclass
class ModelDied(Message):
    """The model's process is gone. What ran has failed before."""

    text: str
    stderr: tuple[str, ...]


def translated(message: WorkerMessage) -> Message:
    """The worker's message as one of Textual's."""
    if isinstance(message, Events):
        return ReplyEvents(message.request, message.events)
    if isinstance(message, Prefilling):
        return PromptProgress(message.request, message.done, message.total)
    if isinstance(message, Loading):
        return ModelProgress(message.stage, clean_line(message.label), message.done, message.total)
    if isinstance(message, Notice):
        return ModelNotice(clean_line(message.text))
    if isinstance(message, Failed):
        return ReplyFailed(message.request, message.error)
    assert isinstance(message, Died)
    return ModelDied(clean_line(str(message)), message.stderr)


class ModelClient:
    """One model at a time, in the worker's process. ``post`` must be callable from any thread."""

    def __init__(self, post: Callable[[Message], object], make: WorkerMaker = Worker) -> None:

        def listen(message: WorkerMessage) -> None:
            post(translated(message))

        self.worker = make(listen)
        self.name = ""
        """What was asked to be loaded last."""

    @property
    def facts(self) -> ModelFacts | None:
        return self.worker.facts

    async def load(self, name: str, options: Mapping[str, Any]) -> ModelFacts:
        """Raises a WgllmError; a load that another one has taken the place of raises WorkerError."""
        self.name = name
        return await asyncio.wrap_future(self.worker.load(name, **options))

    async def restart(self, **changes: Any) -> ModelFacts:
        return await asyncio.wrap_future(self.worker.restart(**changes))

    async def unload(self) -> None:
        await asyncio.wrap_future(self.worker.unload())

    async def chat_tokens(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return await asyncio.wrap_future(self.worker.chat_tokens(messages))

    async def count_tokens(self, text: str) -> int:
        return await asyncio.wrap_future(self.worker.count_tokens(text))

    async def reply_tokens(self, text: str) -> list[int]:
        """The tokens that a reply of this text may have been made of."""
        return await asyncio.wrap_future(self.worker.tokenize(text, add_special=False))

    async def sampling_params(self, options: Mapping[str, Any]) -> SamplingParams:
        return await asyncio.wrap_future(self.worker.sampling_params(**cast("SamplingOptions", options)))

    async def token_texts(self, ids: Sequence[int]) -> list[str]:
        return await asyncio.wrap_future(self.worker.token_texts(ids))

    async def reply_text(self, ids: Sequence[int]) -> str:
        """What a reply of these tokens says."""
        return await asyncio.wrap_future(self.worker.detokenize(ids, skip_special=True))

    def generate(self, request: Request) -> int:
        return self.worker.generate(request)

    def cancel(self, request: int) -> None:
        self.worker.cancel(request)

    async def close(self) -> None:
        await asyncio.to_thread(self.worker.close)
