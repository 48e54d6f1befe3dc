"""What a page may ask for. Numbers and lists are bounded here: what they cost is paid by the server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_TEXT = 4 << 20
"""Characters that are tokenized at a time: more than the longest context has."""
_MOST_TOKENS = 1 << 20
_MOST_MESSAGES = 10_000
_MOST_TOOLS = 256
_MOST_WIDTHS = 64
_MOST_LIMITS = 128
_MOST_ROWS = 1 << 16

Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(max_length=_MOST_TOKENS)]


class _Body(BaseModel):
    # What a page of another version says beside, is not for this server.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Tokenize(_Body):
    text: Annotated[str, Field(max_length=MOST_TEXT)]
    add_special: bool = True
    parse_special: bool = False


class Detokenize(_Body):
    tokens: Tokens


class Message(_Body):
    """Templates may look at more than these."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    role: str
    content: str | list[Any] | None = None
    token_ids: Tokens | None = None


class ChatTokens(_Body):
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    tools: Annotated[list[dict[str, Any]], Field(max_length=_MOST_TOOLS)] | None = None


class PlanWish(_Body):
    limits: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=_MOST_LIMITS)]
    features: Annotated[list[str], Field(max_length=_MOST_LIMITS)] = []
    subgroup_size: Annotated[int, Field(ge=0)] = 0
    software: bool = False
    ctx_size: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class WidthWish(_Body):
    part: Literal["body", "tail", "greedy", "draw"]
    rows: Annotated[int, Field(ge=1, le=_MOST_ROWS)]
    cells: Annotated[int, Field(ge=0, lt=2**31)] = 0


class SchedulesWish(_Body):
    widths: Annotated[list[WidthWish], Field(min_length=1, max_length=_MOST_WIDTHS)]
