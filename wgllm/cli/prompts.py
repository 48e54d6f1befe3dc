"""Where prompts come from: arguments, files, pipes; and the escapes in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wgllm.cli.console import read_text, stdin_is_piped
from wgllm.errors import UsageError

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_CHARS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def unescape(text: str) -> str:
    """``text`` with \\n, \\r, \\t, \\', \\", \\\\ and \\xNN (a byte of UTF-8) replaced; other backslashes stay."""

    def one(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], 16)]) if match[1] else _CHARS.get(match[2], match[0])

    return _text(_ESCAPE.sub(one, _bytes(text)))


def _bytes(text: str) -> bytes:
    # Arguments that the locale could not decode hold their bytes as surrogates.
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt is not UTF-8 text (byte {error.start})") from None


@dataclass(frozen=True)
class Escapes:
    """``mode`` None: in what was typed; True: in files and pipes too; False: nowhere."""

    mode: bool | None

    def typed(self, text: str) -> str:
        return _text(_bytes(text)) if self.mode is False else unescape(text)

    def read(self, path: str, *, tell: bool = False) -> str:
        text = read_text(path, tell=tell)
        return unescape(text) if self.mode else text


def join_prompts(
    prompts: list[str | None],
    files: tuple[str, ...],
    escapes: Escapes,
    *,
    pipe: bool = True,
    tell: bool = False,
) -> str:
    """The parts of the prompt in order; stdin once, where it is named or else at the end when it is piped.

    Empty when there is none. ``pipe`` False leaves a pipe that is not named to others, ``tell`` says so when
    such a pipe is waited for.
    """
    sources = [("-" if p == "-" else None, p) for p in prompts if p is not None] + [(f, None) for f in files]
    if pipe and not any(path == "-" for path, _ in sources) and stdin_is_piped():
        sources.append(("-", None))
    else:
        tell = False
    parts = [
        escapes.typed(text or "") if path is None else escapes.read(path, tell=tell) for path, text in sources
    ]
    parts = [part for part in parts if part]
    return "\n\n".join([*(part.rstrip("\n") for part in parts[:-1]), *parts[-1:]])


def system_prompt(text: str | None, path: str | None, escapes: Escapes) -> str | None:
    """The system prompt that -sys or -sysf gives."""
    if text is not None and path is not None:
        raise UsageError("give either --system-prompt or --system-prompt-file")
    if path is not None:
        return escapes.read(path).rstrip("\n")
    return None if text is None else escapes.typed(text)
