"""Why a request is not answered: what its client is told, whatever went wrong."""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from wgllm.errors import UsageError, WgllmError
from wgllm.serve.errors import error_response

SERVER_ERROR = "server_error"


class Refused(HTTPException):
    """An answer with an error's status. Applications that know nothing of it still answer its status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """``retry_after`` in seconds."""
        message = " ".join(message.split())
        headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, message, headers)
        self.message, self.kind, self.code, self.param = message, kind, code, param

    def response(self) -> JSONResponse:
        return error_response(
            self.status_code,
            self.message,
            kind=self.kind,
            code=self.code,
            param=self.param,
            headers=self.headers,
        )

    def event(self) -> dict[str, Any]:
        """What ends a stream that has begun."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class QueueFull(WgllmError):
    """As many requests wait as may."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"the server is busy: {waiting} requests wait already; try again later")
        self.retry_after = retry_after


class NotLoaded(WgllmError):
    """The model could not be loaded, and it is too early to try again."""

    def __init__(self, why: str, retry_after: float) -> None:
        super().__init__(f"the model is not loaded: {why}")
        self.retry_after = retry_after


class EngineDied(WgllmError):
    """The process that computes ended in the middle of a reply, or at each try."""


class HostClosed(WgllmError):
    """The server is shutting down."""


class PromptRefused(UsageError):
    """No prompt can be made of what was sent: the chat template refuses it, or fails."""


class ContextExceeded(UsageError):
    """The prompt has more tokens than the context."""

    def __init__(self, tokens: int, ctx_size: int) -> None:
        super().__init__(
            f"This model's maximum context length is {ctx_size} tokens, but the prompt has {tokens}; "
            "shorten it, or start the server with a larger context (-c)"
        )


def refusal(error: Exception) -> Refused:
    """``error`` as a client is told of it. What nobody foresaw is an internal error without details."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ContextExceeded):
        return Refused(400, str(error), code="context_length_exceeded")
    if isinstance(error, UsageError):
        return Refused(400, str(error))
    if isinstance(error, QueueFull):
        return Refused(503, str(error), kind=SERVER_ERROR, code="queue_full", retry_after=error.retry_after)
    if isinstance(error, NotLoaded):
        return Refused(503, str(error), kind=SERVER_ERROR, code="not_loaded", retry_after=error.retry_after)
    if isinstance(error, HostClosed):
        return Refused(503, str(error), kind=SERVER_ERROR, code="shutting_down", retry_after=5)
    if isinstance(error, EngineDied):
        return Refused(500, str(error), kind=SERVER_ERROR, code="engine_died")
    if isinstance(error, WgllmError):
        return Refused(500, str(error), kind=SERVER_ERROR)
    return Refused(500, "internal error", kind=SERVER_ERROR)
