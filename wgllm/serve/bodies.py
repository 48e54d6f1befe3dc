"""Request bodies, checked against a model, with errors that name the field. Size and time: see ``BodyLimit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.requests import Request

from wgllm.errors import printable
from wgllm.serve.refusals import Refused

MOST_TEXT = 4 << 20
"""Characters that are tokenized at a time: more than the longest context has."""
# Nobody else is answered while a body is read: about a tenth of a second for as many values as these. A text with more
# of them than that has more tokens than a context.
_MOST_BRACKETS = 200_000
_MOST_COMMAS = 300_000
# Each takes some microseconds to tell.
_MOST_ERRORS = 2_000
# pydantic's names for the forms of a union; the others have brackets.
_FORMS = ("str", "int", "float", "bool", "constrained-str", "constrained-int", "constrained-float")

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """The body as a ``model``. Raises Refused: 400 naming the field; ClientDisconnect when nobody is left."""
    data = await request.body()
    if data.count(b"[") + data.count(b"{") > _MOST_BRACKETS or data.count(b",") > _MOST_COMMAS:
        raise Refused(400, "the body holds too many values")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _refused(error) from None


def at_most(count: int) -> Callable[[Any], Any]:
    """A validator for objects of at most ``count`` fields. A ``max_length`` looks at each of them first."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise PydanticCustomError("too_long", "has more than {count} fields", {"count": count})
        return value

    return check


def _refused(error: ValidationError) -> Refused:
    """Of all that is wrong with a body, what was found deepest: what other forms would have it be is above."""
    if error.error_count() > _MOST_ERRORS:
        return Refused(400, f"the body: {error.error_count():,} values are wrong")
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
        elif part in _FORMS or "[" in part:
            continue
        elif part.isidentifier():
            path += f".{part}" if path else part
        else:
            path += f"[{printable(part, 40)}]"
    return path
