"""Foreign text (a model's, a file's, an error's) made fit for the screen, and cut into its parts."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

# Control characters but for tab and line feed, what turns the direction of text around (code could say one thing and
# show another), and lone surrogates, which no terminal can be sent. Each goes alone, without what follows it: so a
# sequence that comes in two pieces is as harmless as a whole one.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n|[\u2028\u2029]")


def clean(text: str) -> str:
    """``text`` without anything that could give a terminal orders."""
    return _SURROGATES.sub("\ufffd", _HARMFUL.sub("", _LINE_ENDS.sub("\n", text)))


def clean_line(text: str, limit: int = 1000) -> str:
    """``clean`` in one line of at most ``limit`` characters."""
    line = " ".join(clean(text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def short_name(model: str) -> str:
    """A model's name as it is shown: of a path the file's own."""
    name = clean_line(model, 200)
    if name.lower().endswith(".gguf"):
        name = name.replace("\\", "/").rsplit("/", 1)[-1][: -len(".gguf")]
    return name


class Parts(NamedTuple):
    """A reply's reasoning, if it has any, and what it says."""

    reasoning: str | None
    answer: str
    thinking: bool
    """Whether the reasoning goes on."""


_OPEN, _CLOSE = "<think>", "</think>"


def split_reasoning(text: str) -> Parts:
    """Cuts a reply at ``</think>``. Some templates have written the opening tag already, so that it may lack."""
    start = text.lstrip()
    begun = start.startswith(_OPEN)
    if not begun and start and len(start) < len(_OPEN) and _OPEN.startswith(start):
        return Parts(None, "", True)  # may become the tag
    body = start[len(_OPEN) :] if begun else text
    end = body.find(_CLOSE)
    if end < 0:
        return Parts(body.strip("\n"), "", True) if begun else Parts(None, text, False)
    reasoning, answer = body[:end].strip(), body[end + len(_CLOSE) :].lstrip("\n")
    return Parts(reasoning or None, answer, False)


# How a message holds the files that were attached to it, before what was typed.
_ATTACHED = re.compile(r"File: (?P<name>[^\n]+)\n(?P<fence>`{3,})\n(?P<body>.*?)\n?(?P=fence)\n\n", re.DOTALL)


class Attached(NamedTuple):
    """A file's text within a message."""

    name: str
    body: str


def join_attached(files: list[Attached], typed: str) -> str:
    """A message with files before what was typed, in fences longer than any in them."""
    parts = []
    for name, body in files:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
        end = "" if body.endswith("\n") else "\n"
        parts.append(f"File: {clean_line(name, 300)}\n{fence}\n{body}{end}{fence}\n\n")
    return "".join(parts) + typed


def split_attached(content: str) -> tuple[list[Attached], str]:
    """What ``join_attached`` joined."""
    files, at = [], 0
    while match := _ATTACHED.match(content, at):
        files.append(Attached(match["name"], match["body"]))
        at = match.end()
    return files, content[at:]


def count(number: int, one: str, many: str = "") -> str:
    """``1 line``, ``2,000 lines``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def when(moment: float) -> str:
    """A moment as a list shows it: the time today, else the day."""
    then, now = time.localtime(moment), time.localtime()
    if then[:3] == now[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%d %b" if then.tm_year == now.tm_year else "%b %Y", then)
