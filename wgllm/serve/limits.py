"""How much one client can ask for: bytes of headers, bytes and seconds of a body, requests at a time."""

from __future__ import annotations

import re
import time

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wgllm.serve.errors import CLOSE, error_response
from wgllm.serve.security import header
from wgllm.serve.settings import Settings

HEADER_BYTES = 32 << 10
ADMITTED = "wgllm.admitted"
"""In a request's scope: it is one of those that are answered, not one too many."""
_RETRY_SECONDS = 2
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 256 << 20
_DIGITS = re.compile(rb"[0-9]{1,18}")


class RequestLimit:
    """503 when too many requests are being answered; /health is always answered."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._most = settings.max_requests
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            scope[ADMITTED] = True
            await self._app(scope, receive, send)
            return
        if self._running >= self._most:
            refusal = error_response(
                503,
                "the server answers too many requests at a time; try again in a moment",
                kind="server_error",
                code="overloaded",
                headers={"Retry-After": str(_RETRY_SECONDS), **CLOSE},
            )
            await refusal(scope, receive, send)
            return
        self._running += 1
        scope[ADMITTED] = True
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


class _Refused(Exception):
    """A body is too large or too slow."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class BodyLimit:
    """431 for headers that are too large, 413 for bodies that are (as they say, or as it turns out), 408 for those
    that come too slowly."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._most = settings.max_body_bytes
        self._seconds = settings.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        size = 0
        whole = started = False

        async def limited() -> Message:
            nonlocal size, whole
            if whole:  # what comes now is that the client has gone
                return await receive()
            left = self._seconds - (time.monotonic() - began)
            with anyio.move_on_after(max(0.0, left)) as waiting:
                message = await receive()
            if waiting.cancelled_caught:
                raise _Refused(
                    408, f"the body of the request took longer than {self._seconds:g} s", "timeout"
                )
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
            if size > self._most:
                raise self._too_large()
            return message

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._look_at_headers(scope)
            await self._app(scope, limited, noting)
        except _Refused as refused:
            if started:
                raise
            await _refuse(refused, scope, receive, send)

    def _look_at_headers(self, scope: Scope) -> None:
        if sum(len(key) + len(value) for key, value in scope["headers"]) > HEADER_BYTES:
            raise _Refused(431, "the headers of the request are too large", "headers_too_large")
        length = header(scope, b"content-length")
        if length is not None and (_DIGITS.fullmatch(length) is None or int(length) > self._most):
            raise self._too_large()
        if length is not None and header(scope, b"transfer-encoding") is not None:
            raise _Refused(400, "Content-Length and Transfer-Encoding contradict each other", "bad_request")

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the body is larger than {self._most} bytes", "body_too_large")


async def _refuse(refused: _Refused, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, then takes what still comes for a moment: a connection that is closed with unread bytes is
    reset, and then the client might never see the answer."""
    response = error_response(refused.status, str(refused), code=refused.code, headers=CLOSE)
    await send(
        {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    )
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    size = 0
    with anyio.move_on_after(_LINGER_SECONDS):
        while size < _LINGER_BYTES:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
    await send({"type": "http.response.body", "body": b"", "more_body": False})
