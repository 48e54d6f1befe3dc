"""How the server says that something went wrong: JSON in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from wgllm.errors import printable

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
