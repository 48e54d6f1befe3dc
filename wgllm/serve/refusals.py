"""Why a request is not answered: what its client is told, whatever went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from wgllm.errors import UsageError, WgllmError


class Refused(HTTPException):
    """An answer with an error's status. Applications that know nothing of it still answer its status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``kind`` None: as the status says. ``retry_after`` in seconds."""
        message, headers = " ".join(message.split()), dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(status, message, headers)
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.message, self.code, self.param = message, code, param

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


# What stands first of those that an error is one of.
_ANSWERS: tuple[tuple[type[Exception], int, str | None], ...] = (
    (ContextExceeded, 400, "context_length_exceeded"),
    (UsageError, 400, None),
    (QueueFull, 503, "queue_full"),
    (NotLoaded, 503, "not_loaded"),
    (HostClosed, 503, "shutting_down"),
    (EngineDied, 500, "engine_died"),
    (WgllmError, 500, None),
)
# What Starlette says by itself, and what is said instead.
_PHRASES = {
    "Not Found": ("there is nothing at this address", "not_found"),
    "Method Not Allowed": ("this address does not take that method", "method_not_allowed"),
}


def refusal(error: Exception) -> Refused:
    """``error`` as a client is told of it. What nobody foresaw is an internal error without details."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        message, code = _PHRASES.get(error.detail, (error.detail, None))
        return Refused(error.status_code, message, code=code, headers=error.headers)
    for kind, status, code in _ANSWERS:
        if isinstance(error, kind):
            return Refused(status, str(error), code=code, retry_after=getattr(error, "retry_after", None))
    return Refused(500, "internal error of the server")
