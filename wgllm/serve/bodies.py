"""Bodies of requests: JSON that is what it should be, or one line that names the field."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from wgllm.errors import UsageError, printable

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, model: type[Body]) -> Body:
    """The body as ``model``. Raises UsageError for one that is refused."""
    data = await request.body()
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        raise UsageError(f"{printable(field)}: {first['msg']}") from None
