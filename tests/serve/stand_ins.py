"""A model and an engine that compute nothing, and routes that show what reached them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from tests.serve.in_thread import FOR_EVER, InThread, serving
from wgllm.errors import DeviceError, UsageError
from wgllm.serve.app import create_app
from wgllm.serve.refusals import Refused
from wgllm.serve.settings import Settings

KEY = "0123456789abcdef-the-key"
OTHERS = "192.0.2.1"  # an address of nobody, which is not loopback


class StandInModel:
    """What the application wants of a model."""

    id = "stand-in"

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class StandInHost:
    """What the application wants of an engine's host."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.state = "idle"
        self.closed = 0
        self._failure = failure

    async def start(self) -> None:
        self.state = "loading"

    async def loaded(self) -> None:
        await asyncio.sleep(0)
        if self._failure is not None:
            self.state = "failed"
            raise self._failure
        self.state = "ready"

    async def aclose(self) -> None:
        self.closed += 1

    def status(self) -> Mapping[str, Any]:
        return {"state": self.state, "where": "a stand-in" if self.state == "ready" else None}


class Seen:
    """What the routes have seen."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.cancelled = threading.Event()
        self.waiting = threading.Event()
        self.released = threading.Event()


def routes(seen: Seen) -> list[Route]:
    async def echo(request: Request) -> Response:
        body = await request.body()
        seen.bodies.append(body)
        return JSONResponse({"size": len(body)})

    async def large(request: Request) -> Response:
        return JSONResponse({"text": "word " * 100_000})

    async def lines(request: Request) -> Response:
        async def produced() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b'{"number": %d}\n' % number * 300

        return StreamingResponse(produced(), media_type="application/x-ndjson")

    async def events(request: Request) -> Response:
        async def produced() -> AsyncIterator[bytes]:
            while True:
                yield b"data: {}\n\n" * 200
                seen.waiting.set()
                await asyncio.sleep(0.01)

        class Events(StreamingResponse):
            async def stream_response(self, send: Send) -> None:
                try:
                    await super().stream_response(send)
                finally:  # that of the generator would run when it is collected
                    seen.cancelled.set()

        return Events(produced(), media_type="text/event-stream")

    async def weights(request: Request) -> Response:
        data = bytes(4096)
        if "range" in request.headers:
            return Response(data[:2048], 206, {"Content-Range": "bytes 0-2047/4096", "ETag": '"x"'})
        return Response(data, media_type="application/octet-stream")

    async def flood(request: Request) -> Response:
        async def produced() -> AsyncIterator[bytes]:
            while True:
                yield bytes(1 << 20)

        return StreamingResponse(produced(), media_type="application/octet-stream")

    async def boom(request: Request) -> Response:
        raise ZeroDivisionError("secret of /root/model.gguf")

    async def cut(request: Request) -> Response:
        async def produced() -> AsyncIterator[bytes]:
            yield b"begun"
            raise ZeroDivisionError("too late")

        return StreamingResponse(produced(), media_type="text/plain")

    async def wrong(request: Request) -> Response:
        raise UsageError("temperature: must not be negative")

    async def refused(request: Request) -> Response:
        raise Refused(404, "unknown plan", kind="not_here", code="unknown_plan", param="id", retry_after=6.5)

    async def no_device(request: Request) -> Response:
        raise DeviceError("the graphics card was lost")

    async def wait(request: Request) -> Response:
        seen.waiting.set()
        await asyncio.sleep(FOR_EVER)
        return JSONResponse({})

    async def compute(request: Request) -> Response:
        from anyio import to_thread

        seen.waiting.set()
        await to_thread.run_sync(seen.released.wait, FOR_EVER)
        return JSONResponse({})

    return [
        Route("/v1/echo", echo, methods=["POST"]),
        Route("/api/model", echo),
        Route("/api/large", large),
        Route("/api/lines", lines),
        Route("/v1/events", events),
        Route("/api/plans/x/weights", weights),
        Route("/api/vocabulary", weights),
        Route("/api/flood", flood),
        Route("/api/boom", boom),
        Route("/api/cut", cut),
        Route("/api/wrong", wrong),
        Route("/api/no_device", no_device),
        Route("/api/refused", refused),
        Route("/api/wait", wait),
        Route("/api/compute", compute),
    ]


def application(settings: Settings | None = None, seen: Seen | None = None) -> Starlette:
    used = Settings() if settings is None else settings
    return create_app(StandInModel(), StandInHost(), used, routes(seen or Seen()))


def ask(
    settings: Settings,
    method: str,
    path: str,
    *,
    seen: Seen | None = None,
    base: str = "http://localhost:8080",
    **options: Any,
) -> httpx.Response:
    """One request to an application of its own, without a socket."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(application(settings, seen), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def ask_raw(method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> tuple[int, bytes]:
    """Status and body of a request whose path no client has tidied up."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *headers],
    }
    asyncio.run(application()(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@contextlib.contextmanager
def running(
    settings: Settings | None = None,
    seen: Seen | None = None,
    *,
    context: ssl.SSLContext | None = None,
    daemon: bool = True,
) -> Iterator[InThread]:
    used = Settings() if settings is None else settings
    with serving(application(used, seen), used.host, context=context, daemon=daemon) as server:
        yield server
