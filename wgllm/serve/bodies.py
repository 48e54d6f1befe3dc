"""Request bodies: read up to a limit, then checked against a model, with errors that name the field."""

from __future__ import annotations

from typing import TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from wgllm.errors import printable
from wgllm.serve.refusals import Refused

MAX_BODY_BYTES = 16 << 20
"""Unless the application's ``state.max_body_bytes`` says otherwise."""

# How long a sender may be silent.
_SILENCE_SECONDS = 30.0
# A list of 16 MiB takes seconds to make and gigabytes to hold; no text that fits a context has so many of these.
_MOST_BRACKETS = 200_000
_MOST_COMMAS = 2_000_000

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """The body as a ``model``. Raises Refused: 400 naming the field, 408, 413; ClientDisconnect when nobody is left."""
    data = await _read(request)
    if data.count(b"[") + data.count(b"{") > _MOST_BRACKETS or data.count(b",") > _MOST_COMMAS:
        raise Refused(400, "the body holds too many values")
    try:
        return model.model_validate_json(bytes(data))
    except ValidationError as error:
        raise _refused(error) from None


async def _read(request: Request) -> bytearray:
    limit = getattr(request.app.state, "max_body_bytes", MAX_BODY_BYTES)
    try:
        declared = int(request.headers.get("content-length", "0"))
    except ValueError:
        raise Refused(400, "Content-Length is no number") from None
    data = bytearray()
    pieces = request.stream().__aiter__()
    while True:
        if max(declared, len(data)) > limit:
            raise Refused(413, f"the body has more than {limit:,} bytes", code="body_too_large")
        try:
            with anyio.fail_after(_SILENCE_SECONDS):
                data += await pieces.__anext__()
        except StopAsyncIteration:
            return data
        except TimeoutError:
            raise Refused(408, "the body did not come") from None


def _refused(error: ValidationError) -> Refused:
    """Of all that is wrong with a body, what was found deepest: what other forms would have it be is above."""
    found = error.errors(include_url=False, include_context=False)
    worst = max(found, key=lambda one: len(_path(one)))
    path, kind = _path(worst), worst["type"]
    text = printable(worst["msg"], 300)
    if kind == "json_invalid":
        return Refused(400, f"the body is not JSON: {text.removeprefix('Invalid JSON: ')}")
    if not path:
        return Refused(400, f"the body: {text}")
    return Refused(
        400, f"{path}: {text}", param=path, code="unsupported_value" if kind == "unsupported" else None
    )


def _path(error: ErrorDetails) -> str:
    """``messages[0].content``, without pydantic's names for the forms of a union."""
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
        elif "[" not in part:
            path += f"[{printable(part, 40)}]"
    return path
