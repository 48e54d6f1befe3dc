"""How the server says that something went wrong: JSON in OpenAI's form, and a line for who runs it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wgllm import debug
from wgllm.errors import WgllmError, printable
from wgllm.serve.refusals import Refused, refusal

log = logging.getLogger("wgllm.serve")

CLOSE = {"Connection": "close"}
_MESSAGE_LENGTH = 1000


def error_response(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """``{"error": {"message", "type", "param", "code"}}``; the message becomes one line of printable text."""
    said = printable(" ".join(message.split()), _MESSAGE_LENGTH)
    # A lone surrogate, as JSON may bring one, has no UTF-8.
    said = said.encode("utf-8", "replace").decode("utf-8")
    return JSONResponse(
        {"error": {"message": said, "type": kind, "param": param, "code": code}}, status, headers
    )


def answer_to(refused: Refused) -> JSONResponse:
    return error_response(
        refused.status_code,
        refused.message,
        kind=refused.kind,
        code=refused.code,
        param=refused.param,
        headers=refused.headers,
    )


def noted(error: Exception, scope: Scope) -> Refused:
    """``error`` as the client is told of it; who runs the server is told of those that are the server's own."""
    refused = refusal(error)
    if isinstance(error, WgllmError):
        if refused.status_code == 500:
            log.error("%s: %s", _asked(scope), printable(str(error), _MESSAGE_LENGTH))
    elif not isinstance(error, HTTPException):
        where = "" if debug.level() else " (WGLLM_DEBUG=1 shows where)"
        problem = " ".join(printable(f"{type(error).__name__}: {error}").split())
        traceback = error if debug.level() else None
        log.error("%s: internal error: %s%s", _asked(scope), problem, where, exc_info=traceback)
    return refused


async def _on_error(request: Request, error: Exception) -> Response:
    return answer_to(noted(error, request.scope))


EXCEPTION_HANDLERS = {HTTPException: _on_error, WgllmError: _on_error}
"""Starlette's, for errors that routes raise."""


class Boundary:
    """The outermost: headers that every answer has, requests in the log, and unexpected errors without details."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str], *, verbose: bool = False) -> None:
        self._app = app
        self._headers = headers
        self._verbose = verbose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        status = 0
        began = time.monotonic()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                # What the model's file is may change, what was asked is nobody's business.
                headers.setdefault("Cache-Control", "no-cache" if "etag" in headers else "no-store")
            await send(message)
            if message.get("more_body", False):
                # What has no need to wait, because a reader is fast or has gone, would let nobody else in.
                await asyncio.sleep(0)

        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # the server ends
            if not status:
                gone = error_response(503, "the server is ending", kind="server_error", headers=CLOSE)
                await gone(scope, receive, answer)
            raise
        except Exception as error:
            refused = noted(error, scope)
            if status:
                raise  # the connection is cut, so that nobody takes what was sent for the whole
            await answer_to(refused)(scope, receive, answer)
        finally:
            if self._verbose:
                taken = 1000 * (time.monotonic() - began)
                log.info("%s %s %.0f ms", _asked(scope), status or "-", taken)


def _asked(scope: Scope) -> str:
    """Method and path; what stands behind ``?`` is left out."""
    return f"{printable(scope['method'], 20)} {printable(scope['path'], 100)}"
