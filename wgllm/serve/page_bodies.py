"""What a page may ask for. Numbers and lists are bounded here: what they cost is paid by the server.

Lists end at the first value that is wrong, and objects are counted before any value is looked at: pydantic keeps an
error for each, and a million of those takes seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from wgllm.serve.bodies import MOST_TEXT, at_most

_MOST_MESSAGES = 10_000
_MOST_TOOLS = 256
_MOST_WIDTHS = 64
_MOST_LIMITS = 128
_MOST_ROWS = 1 << 16

Text = Annotated[str, Field(max_length=MOST_TEXT)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(fail_fast=True)]


class _Body(BaseModel):
    # What a page of another version says beside, is not for this server.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Tokenize(_Body):
    text: Text
    add_special: bool = True
    parse_special: bool = False


class Detokenize(_Body):
    tokens: Tokens


class Message(_Body):
    """Templates may look at more than these."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    role: str
    content: Text | list[Any] | None = None
    token_ids: Tokens | None = None


class ChatTokens(_Body):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=_MOST_MESSAGES)]
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=_MOST_TOOLS)] | None = None
    plan: Annotated[str, Field(max_length=64)] | None = None
    """What will compute them: the tokens of another model mean nothing to it."""


class PlanWish(_Body):
    limits: Annotated[dict[str, Annotated[int, Field(ge=0)]], BeforeValidator(at_most(_MOST_LIMITS))]
    features: Annotated[list[str], Field(fail_fast=True, max_length=_MOST_LIMITS)] = []
    subgroup_size: Annotated[int, Field(ge=0)] = 0
    software: bool = False
    ctx_size: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class WidthWish(_Body):
    part: Literal["body", "tail", "greedy", "draw"]
    rows: Annotated[int, Field(ge=1, le=_MOST_ROWS)]
    cells: Annotated[int, Field(ge=0, lt=2**31)] = 0


class SchedulesWish(_Body):
    widths: Annotated[list[WidthWish], Field(fail_fast=True, min_length=1, max_length=_MOST_WIDTHS)]
