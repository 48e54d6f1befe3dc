"""A server with OpenAI's routes alone, on a port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware

from tests.serve.in_thread import PATIENCE, serving
from wgllm.serve.engine_host import EngineHost
from wgllm.serve.errors import EXCEPTION_HANDLERS, Boundary
from wgllm.serve.limits import BodyLimit
from wgllm.serve.openai_routes import chat_routes
from wgllm.serve.settings import Settings
from wgllm.worker import Worker
from wgllm.worker_protocol import ModelFacts

T = TypeVar("T")


class FakeWorker(Worker):
    """Its models are ``FakeEngine``s: the options of ``load`` are those of ``load_fake``."""

    def load(self, model: Any, **options: Any) -> Future[ModelFacts]:
        return self.load_fake(**options)


@dataclass(frozen=True)
class Named:
    """What of a ``ServedModel`` the routes use."""

    id: str


class Running:
    """A server that answers."""

    def __init__(self, host: EngineHost, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.host, self.url, self._loop = host, url, loop

    @property
    def worker(self) -> Worker:
        return self.host.worker

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """In the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


@contextlib.contextmanager
def running(make_host: Callable[[], EngineHost], name: str = "tiny", **settings: Any) -> Iterator[Running]:
    """Serves what ``make_host`` makes in the server's loop, to whoever asks; ``settings`` are those of limits."""
    loop: Future[asyncio.AbstractEventLoop] = Future()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loop.set_result(asyncio.get_running_loop())
        yield
        await host.aclose()

    host = make_host()
    app = Starlette(
        routes=chat_routes(host, Named(name)),
        middleware=[Middleware(Boundary, headers={}), Middleware(BodyLimit, settings=Settings(**settings))],
        exception_handlers=dict(EXCEPTION_HANDLERS),
        lifespan=lifespan,
    )
    with serving(app) as server:
        yield Running(host, server.url, loop.result(PATIENCE))


def fake_host(*replies: str, queue_size: int = 8, **options: Any) -> EngineHost:
    """A host of a ``FakeEngine``."""
    options = {"replies": list(replies) or ["Hello!"], **options}
    return EngineHost("fake", options, queue_size=queue_size, make_worker=FakeWorker)
