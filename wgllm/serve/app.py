"""The application: the routes of all parts behind what keeps strangers, floods and mistakes out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from wgllm import __version__
from wgllm.errors import WgllmError
from wgllm.serve.compression import Compression
from wgllm.serve.errors import EXCEPTION_HANDLERS, Boundary, log
from wgllm.serve.limits import BodyLimit, RequestLimit
from wgllm.serve.security import AUTHORIZED, HostCheck, KeyCheck, OriginCheck, security_headers
from wgllm.serve.settings import Settings
from wgllm.serve.static import static_routes


class Model(Protocol):
    """What the application itself wants of a ``ServedModel``."""

    @property
    def id(self) -> str: ...

    def close(self) -> None: ...


class Host(Protocol):
    """What the application itself wants of an ``EngineHost``."""

    async def start(self) -> None: ...

    async def loaded(self) -> None: ...

    async def aclose(self) -> None: ...

    def status(self) -> Mapping[str, Any]: ...


EngineTold = Callable[[Mapping[str, Any], WgllmError | None], None]
"""Is told the engine's status and its error, if it has one, when loading at the start has ended."""


def create_app(
    model: Model,
    host: Host,
    settings: Settings,
    routes: Sequence[BaseRoute],
    *,
    on_engine: EngineTold = lambda status, error: None,
) -> Starlette:
    """The server of a ``ServedModel`` and its ``EngineHost``, which it closes in the end.

    ``routes`` are those beside the page's files and /health: ``page_routes`` and ``chat_routes``.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(host, on_engine)) if settings.load_at_start else None
        try:
            yield
        finally:
            if loading is not None:
                loading.cancel()
                await asyncio.wait({loading})
            await host.aclose()
            await to_thread.run_sync(model.close)

    app = Starlette(
        routes=[Route("/health", _health(model, host)), *static_routes(), *routes],
        middleware=[
            Middleware(Boundary, headers=security_headers(settings), verbose=settings.verbose),
            Middleware(HostCheck, settings=settings),
            Middleware(OriginCheck, settings=settings),
            Middleware(KeyCheck, settings=settings),
            Middleware(RequestLimit, settings=settings),
            Middleware(BodyLimit, settings=settings),
            Middleware(Compression),
        ],
        exception_handlers=dict(EXCEPTION_HANDLERS),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _health(model: Model, host: Host) -> Callable[[Request], Any]:
    async def health(request: Request) -> Response:
        """That the server lives; more only for who has the key."""
        if not request.scope[AUTHORIZED]:
            return JSONResponse({"status": "ok"})
        return JSONResponse(
            {"status": "ok", "version": __version__, "model": model.id, "engine": dict(host.status())}
        )

    return health


async def _load(host: Host, told: EngineTold) -> None:
    """Starts the engine and tells what became of it; the page is there meanwhile."""
    try:
        await host.start()
        await host.loaded()
    except WgllmError as error:
        told(host.status(), error)
    except Exception as error:
        log.exception("the engine could not be started: %s", error)
        told(host.status(), WgllmError(f"the engine could not be started: {error}"))
    else:
        told(host.status(), None)
