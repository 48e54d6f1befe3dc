"""What commands share: messages on stderr, text on stdout that can't harm a terminal, prompts from files and pipes."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wgllm.errors import UsageError
from wgllm.hub_progress import animates

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""click's settings of every command."""

_SILENCE_SECONDS = 1.0


def use_utf8() -> None:
    """stdout and stderr in UTF-8 whatever the locale; what can't be encoded is replaced, never an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def say(message: str) -> None:
    """A message for people, on stderr."""
    click.echo(message, err=True)


def harmless(text: str) -> str:
    """``text`` from a model without control characters, so that it can't give a terminal orders."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def write_text(text: str) -> None:
    """Model text on stdout at once; made harmless when a terminal reads it."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """A line of JSON on stdout at once; in ASCII, without control characters, when a terminal reads it."""
    sys.stdout.write(json.dumps(value, ensure_ascii=sys.stdout.isatty()) + "\n")
    sys.stdout.flush()


def loading_bar(what: str, doing: str = "loading") -> Callable[[int, int], None] | None:
    """A progress callback that redraws one line of stderr while weights load; None when it can't be."""
    if not animates(sys.stderr):
        return None
    shown = -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown:
            shown = percent
            sys.stderr.write(f"\r{doing} {what} {percent:3d}%" if percent < 100 else "\r\x1b[K")
            sys.stderr.flush()

    return progress


def read_text(path: str, *, tell: bool = False) -> str:
    """A file's text, or stdin's for ``-``, without a byte order mark and with lines that end in \\n.

    With ``tell`` a line on stderr says that stdin is waited for when it says nothing. Raises UsageError.
    """
    try:
        data = _read_stdin(tell) if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{'stdin' if path == '-' else path}: not UTF-8 text (byte {error.start})"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def _read_stdin(tell: bool) -> bytes:
    if sys.stdin is None:
        raise UsageError("stdin is closed")
    stdin = sys.stdin.buffer
    timer = threading.Timer(_SILENCE_SECONDS, say, ["waiting for stdin, a pipe; `< /dev/null` leaves it out"])
    timer.daemon = True
    if tell:
        timer.start()
    try:
        first = stdin.read(1)
    finally:
        timer.cancel()
    return first + stdin.read()


def stdin_is_piped() -> bool:
    """Whether stdin is a pipe or a file, rather than a terminal, a socket or nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
