"""What the store of conversations hands out: plain values, which never change by themselves."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant", "tool")


class MessageState(str, enum.Enum):
    """How far a message has come."""

    PARTIAL = "partial"
    """A reply that is being generated, by this process or another one."""
    COMPLETE = "complete"
    STOPPED = "stopped"
    """The user stopped it; its text is what there was."""
    ERROR = "error"
    """Generating failed; its text is what there was."""
    INTERRUPTED = "interrupted"
    """The program ended while it was generated; its text is what was saved last."""


class Message(NamedTuple):
    """A message and its place in the tree. (A tuple, since a long conversation has thousands.)"""

    id: int
    session_id: int
    parent_id: int | None
    """None for the first message of a conversation, of which there are several once it was edited."""
    role: str
    content: str
    """As it was written or generated, with ``<think>`` and escape sequences: not fit for a terminal as it is."""
    state: MessageState
    finish_reason: str | None
    model: str
    created: float
    """Seconds since 1970."""
    token_count: int | None
    stats_json: str | None
    position: int
    """Which of its siblings it is, from 1."""
    n_siblings: int
    """How many messages have this parent, itself among them."""

    @property
    def stats(self) -> dict[str, Any] | None:
        """The figures that were saved with a reply."""
        return None if self.stats_json is None else parse_mapping(self.stats_json)


@dataclass(frozen=True)
class Session:
    """A conversation without its messages."""

    id: int
    title: str
    """Empty until there is a first message."""
    named: bool
    """Whether the user chose the title; else it comes from the first message."""
    created: float
    updated: float
    """When a message was last added or ended; seconds since 1970."""
    model: str = ""
    system_prompt: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What JSON can hold: parameters of samplers, the context's size, …"""
    draft: str = ""
    """What stood in the input box."""
    leaf_id: int | None = None
    """The last message of the branch that is shown; None while there is no message."""
    deleted_at: float | None = None


class SessionSummary(NamedTuple):
    """A line of the list of conversations."""

    id: int
    title: str
    updated: float
    model: str
    snippet: str
    """The beginning of the last message, in one line without control characters."""
    n_messages: int
    deleted_at: float | None


class SearchHit(NamedTuple):
    """A message, or with ``message_id`` None a title, in which all words were found."""

    session_id: int
    title: str
    message_id: int | None
    role: str | None
    snippet: str
    """In one line without control characters."""
    highlights: tuple[tuple[int, int], ...]
    """(start, end) of what was found in the snippet."""


@dataclass(frozen=True)
class Conversation:
    """A session with all its branches."""

    session: Session
    messages: tuple[Message, ...]
    """By id, so that parents come before their children and siblings in their order."""
    visited: Mapping[int, int]
    """Message → that of its children whose branch was shown last."""


class Preset(NamedTuple):
    """Settings and a system prompt under a name."""

    name: str
    settings: dict[str, Any]
    system_prompt: str


def parse_mapping(text: str) -> dict[str, Any]:
    """The JSON object in ``text``; an empty one where somebody else has written something different."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
