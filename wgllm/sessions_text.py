"""Texts of conversations, which may hold anything: made fit for the database, for a list and for a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from wgllm.errors import UsageError

MAX_TEXT = 256 << 20
"""Characters of a message; SQLite takes texts of up to a billion bytes."""
TITLE_LENGTH = 200
_SHORT_TITLE_LENGTH = 60
SNIPPET_LENGTH = 120

_C1 = "\x80-\x9f"
# Control sequences; strings that a terminal takes for itself (titles, the clipboard) only where they end, since a
# stray beginning must not take the rest of the text away; other sequences.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    rf"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\n{_C1}]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
)
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f{_C1}]")
# What turns the direction of text around: in a list, that of all that follows in the line.
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_MARKS = re.compile(r"^(?:#{1,6}\s+|>\s*|[-*+]\s+|\d+[.)]\s+)+")
_FENCE = re.compile(r"^ {0,3}(?:`{3,}|~{3,})")


def storable(text: str) -> str:
    """``text`` as the database keeps it: NUL and lone surrogates, which UTF-8 and SQL lack, become U+FFFD.

    Raises UsageError for more than MAX_TEXT characters.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(f"a text of {len(text):,} characters is too long to keep; {MAX_TEXT:,} fit")
    text = text.replace("\0", "\ufffd")[:]  # the slice makes a str of an enum's member
    try:
        text.encode()
    except UnicodeEncodeError:
        # Through UTF-16, so that two surrogates which belong together become their character.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def json_text(value: Mapping[str, Any], what: str) -> str:
    """The mapping as JSON. Raises UsageError, which calls it ``what``, when JSON cannot hold it."""
    try:
        return storable(json.dumps(dict(value), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} cannot be kept as JSON: {error}") from None


def plain(text: str) -> str:
    """``text`` without escape sequences and control characters; lines end with a line feed, tabs stay."""
    text = _LINE_ENDS.sub("\n", _ESCAPES.sub("", text))
    return _CONTROLS.sub("", text)


def one_direction(text: str) -> str:
    """``text`` without what turns the direction of text around."""
    return _DIRECTIONS.sub("", text)


def one_line(text: str, limit: int) -> str:
    """The beginning of ``text`` in one line of at most ``limit`` characters, cut between words where it can be."""
    # Ten times as much, so that blanks and escapes at the beginning don't use it up.
    line = " ".join(one_direction(plain(text[: 10 * limit])).split())
    if len(line) <= limit:
        return line
    line = line[: limit - 1]
    end = line.rfind(" ")
    return (line[:end] if end > limit // 2 else line).rstrip() + "…"


def title_of(text: str) -> str:
    """A title from a message: its first line that says something; empty when there is none."""
    for line in plain(text[:10_000]).split("\n"):
        if _FENCE.match(line):
            continue
        line = _MARKS.sub("", line.strip()).strip("*_` \t")
        if any(c.isalnum() for c in line):
            return one_line(line, _SHORT_TITLE_LENGTH)
    return one_line(text, _SHORT_TITLE_LENGTH)
