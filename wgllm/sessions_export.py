"""Conversations as files: Markdown to read, JSON that holds all branches and can be read back."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wgllm.errors import SessionFileError, UsageError
from wgllm.sessions_text import TITLE_LENGTH, json_text, one_line, plain, storable
from wgllm.sessions_types import ROLES, Conversation, Message, MessageState, Session

FORMAT, VERSION = "wgllm-conversation", 1

_MAX_FILE = 1 << 30
_LAST_SECOND = 253_402_300_799.0  # of the year 9999, the last that dates know
_STATES = {
    MessageState.STOPPED: "stopped",
    MessageState.ERROR: "ended by an error",
    MessageState.INTERRUPTED: "interrupted",
    MessageState.PARTIAL: "not finished",
}
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_THINK = re.compile(r"\s*<think>(.*?)(?:</think>|\Z)", re.DOTALL)
# HTML that goes on until its end is found, however many blank lines there are, and what that end is.
_HTML = tuple(
    (re.compile(rf" {{0,3}}<{begin}", re.IGNORECASE), re.compile(end, re.IGNORECASE))
    for begin, end in (
        (r"(?:script|pre|style|textarea)(?=[\s>]|$)", "</(?:script|pre|style|textarea)>"),
        ("!--", "-->"),
        (r"\?", r"\?>"),
        (r"!\[CDATA\[", r"\]\]>"),
        ("![A-Za-z]", ">"),
    )
)


# Markdown


def to_markdown(session: Session, path: Sequence[Message]) -> str:
    """One branch to read: title, model and date, system prompt, messages. No message can reach into the next one."""
    parts = [
        f"# {_escaped(one_line(session.title, TITLE_LENGTH)) or 'Conversation'}",
        _facts(session.model, session.created),
    ]
    if session.system_prompt.strip():
        parts += ["## System prompt", closed(session.system_prompt)]
    for message in path:
        model = message.model if message.model != session.model else ""
        note = _STATES.get(message.state, "")
        parts.append(f"## {message.role.capitalize()}")
        parts.append(_facts(model, message.created, note))
        thought = _THINK.match(message.content) if message.role == "assistant" else None
        if thought:
            quoted = "\n".join(f"> {line}".rstrip() for line in closed(thought[1]).split("\n"))
            parts.append(f"> *Reasoning*\n>\n{quoted}")
        parts.append(closed(message.content[thought.end() :] if thought else message.content))
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(model: str, when: float, note: str = "") -> str:
    moment = datetime.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M")
    return "*" + " · ".join(filter(None, (_escaped(one_line(model, 200)), moment, note))) + "*"


def _escaped(text: str) -> str:
    """``text`` whose characters mean themselves in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", text)


def closed(text: str) -> str:
    """Markdown without control characters, in which no code block and no HTML is left open at the end."""
    lines = plain(text).strip("\n").rstrip().split("\n")
    # Of each kind of HTML, the last line that ends it.
    ends = {end: max((i for i, line in enumerate(lines) if end.search(line)), default=-1) for _, end in _HTML}
    out: list[str] = []
    fence = ""
    html: re.Pattern[str] | None = None
    for i, line in enumerate(lines):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif html is not None:
            html = None if html.search(line) else html
        elif mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
        elif opened := next((end for begin, end in _HTML if begin.match(line)), None):
            if ends[opened] < i:
                line = line.replace("<", "\\<", 1)
            elif not opened.search(line):
                html = opened
        out.append(line)
    if fence:
        out.append(fence)
    return "\n".join(out)


# JSON


def to_json(conversation: Conversation) -> str:
    """All of a conversation, to be read by ``from_json``. Messages are told by their place in the list."""
    session = conversation.session
    place = {m.id: i for i, m in enumerate(conversation.messages)}
    data = {
        "format": FORMAT,
        "version": VERSION,
        "title": session.title,
        "named": session.named,
        "created": session.created,
        "updated": session.updated,
        "model": session.model,
        "system_prompt": session.system_prompt,
        "settings": session.settings,
        "draft": session.draft,
        "leaf": None if session.leaf_id is None else place[session.leaf_id],
        "messages": [
            {
                "parent": None if m.parent_id is None else place[m.parent_id],
                "role": m.role,
                "content": m.content,
                "state": m.state.value,
                "finish_reason": m.finish_reason,
                "model": m.model,
                "created": m.created,
                "token_count": m.token_count,
                "stats": m.stats,
                "last_shown": place[conversation.visited[m.id]] if m.id in conversation.visited else None,
            }
            for m in conversation.messages
        ],
    }
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def from_json(text: str, origin: str | os.PathLike[str] = "JSON") -> Conversation:
    """What ``to_json`` wrote. Raises SessionFileError, which names ``origin`` and the field."""
    try:
        data = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise SessionFileError(origin, "is nested too deeply") from None
    except ValueError as error:
        raise SessionFileError(origin, f"is not JSON: {error}") from None
    try:
        return _conversation(data)
    except (_Wrong, UsageError) as error:
        raise SessionFileError(origin, str(error)) from None


class _Wrong(Exception):
    pass


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _conversation(data: Any) -> Conversation:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _Wrong("is no conversation of wgllm's")
    version = _field(data, "version", int)
    if version != VERSION:
        raise _Wrong(f"has version {version}; this wgllm reads version {VERSION}")
    items = _field(data, "messages", list)
    messages: list[Message] = []
    visited: dict[int, int] = {}
    n_children: dict[int | None, int] = {}
    for i, item in enumerate(items):
        where = f"messages[{i}]"
        if not isinstance(item, dict):
            raise _Wrong(f"{where} is not an object")
        parent = _index(item, "parent", where, i)
        parent_id = None if parent is None else parent + 1
        n_children[parent_id] = n_children.get(parent_id, 0) + 1
        messages.append(_message(item, where, i + 1, parent_id, n_children[parent_id]))
    messages = [m._replace(n_siblings=n_children[m.parent_id]) for m in messages]
    for i, item in enumerate(items):
        shown = _index(item, "last_shown", f"messages[{i}]", len(items))
        if shown is not None:
            if messages[shown].parent_id != i + 1:
                raise _Wrong(f"messages[{i}]: last_shown is no message below this one")
            visited[i + 1] = shown + 1
    leaf = _index(data, "leaf", "", len(items))
    if (leaf is None) != (not items):
        raise _Wrong("leaf must name a message when there are any")
    settings = _field(data, "settings", dict)
    json_text(settings, "settings")
    session = Session(
        0, one_line(_text(data, "title"), TITLE_LENGTH), _field(data, "named", bool),
        _moment(data, "created"), _moment(data, "updated"),
        _text(data, "model"), _text(data, "system_prompt"), settings, _text(data, "draft"),
        None if leaf is None else leaf + 1,
    )  # fmt: skip
    return Conversation(session, tuple(messages), visited)


def _message(item: dict[str, Any], where: str, number: int, parent_id: int | None, position: int) -> Message:
    role = _text(item, "role", where)
    if role not in ROLES:
        raise _Wrong(f"{where}: role is none of {', '.join(ROLES)}")
    try:
        state = MessageState(_text(item, "state", where))
    except ValueError:
        raise _Wrong(f"{where}: state is none of {', '.join(MessageState)}") from None
    finish_reason = None if item.get("finish_reason") is None else _text(item, "finish_reason", where)
    count = None if item.get("token_count") is None else _field(item, "token_count", int, where)
    if count is not None and not 0 <= count < 1 << 63:
        raise _Wrong(f"{where}: token_count is out of range")
    stats = None if item.get("stats") is None else _field(item, "stats", dict, where)
    return Message(
        number, 0, parent_id, role, _text(item, "content", where), state, finish_reason, _text(item, "model", where),
        _moment(item, "created", where), count, None if stats is None else json_text(stats, "stats"), position, 0,
    )  # fmt: skip


def _field(data: dict[str, Any], name: str, kind: type, where: str = "") -> Any:
    value = data.get(name)
    if type(value) is not kind:
        kinds = {
            int: "a whole number",
            list: "a list",
            dict: "an object",
            str: "a text",
            bool: "true or false",
        }
        raise _Wrong(f"{where}{': ' if where else ''}{name} must be {kinds[kind]}")
    return value


def _text(data: dict[str, Any], name: str, where: str = "") -> str:
    return storable(_field(data, name, str, where))


def _moment(data: dict[str, Any], name: str, where: str = "") -> float:
    value = data.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST_SECOND:
        return float(value)
    raise _Wrong(f"{where}{': ' if where else ''}{name} must be seconds since 1970")


def _index(data: dict[str, Any], name: str, where: str, below: int) -> int | None:
    value = data.get(name)
    if value is not None and (type(value) is not int or not 0 <= value < below):
        raise _Wrong(f"{where}{': ' if where else ''}{name} must be the place of a message, counted from 0")
    return value


# Files


def write_file(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Writes all of ``text`` or nothing, readable for its owner alone. Raises SessionFileError."""
    if not overwrite and os.path.lexists(path):
        raise SessionFileError(path, "exists already")
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(
            partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SessionFileError(path, f"cannot be written: {error.strerror or error}") from error


def read_file(path: Path) -> str:
    """The text of a file that ``write_file`` wrote. Raises SessionFileError."""
    try:
        # Opening a FIFO would wait for a writer, so look first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SessionFileError(path, "is not a regular file")
        if status.st_size > _MAX_FILE:
            raise SessionFileError(path, f"is larger than {_MAX_FILE >> 20} MiB")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SessionFileError(path, "is not UTF-8") from None
    except OSError as error:
        raise SessionFileError(path, f"cannot be read: {error.strerror or error}") from error
