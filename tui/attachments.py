"""``@path`` in what is typed: which files it names, what they hold, how paths go on."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from wgllm.errors import UsageError
from wgllm.tui.text import Attached, clean, clean_line

LARGEST = 2 << 20
"""Bytes of a file that is attached."""

_MENTION = re.compile(r'(?<!\S)@(?:"(?P<quoted>[^"\n]+)"|(?P<plain>[^\s"]+))')
_UNFINISHED = re.compile(r'(?<!\S)@(?:"(?P<quoted>[^"\n]*)|(?P<plain>[^\s"]*))$')
_MOST_NAMES = 200


class Completion(NamedTuple):
    """What may stand in place of a word that is being typed."""

    text: str
    hint: str
    start: int
    """Where in the line the word begins."""


def mentions(text: str) -> list[str]:
    """The paths that ``text`` names, each once."""
    found = [m["quoted"] or m["plain"] for m in _MENTION.finditer(text)]
    return list(dict.fromkeys(found))


def file_of(path: str) -> Path | None:
    """The file, if there is one; a full stop or comma after it belongs to the sentence."""
    for name in (path, path.rstrip(".,;:!?)")):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            file = Path(name).expanduser()
            if name and file.is_file():
                return file
    return None


def read(path: str) -> Attached | None:
    """The text of a file; None when there is no file of that name. Raises UsageError for one that is no text."""
    file = file_of(path)
    if file is None:
        return None
    shown = clean_line(path, 100)
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise UsageError(
                f"@{shown} has {size_text(size)}; files of up to {size_text(LARGEST)} can be attached"
            )
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"@{shown}: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        text = ""
    if b"\0" in data or (data and not text):
        raise UsageError(f"@{shown} is no text file; only UTF-8 text can be attached")
    return Attached(clean_line(file.name, 200), clean(text))


def size_text(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000 or unit == "MB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    raise AssertionError


def complete(line: str) -> list[Completion]:
    """How the path that ``line`` ends with may go on."""
    match = _UNFINISHED.search(line)
    if match is None:
        return []
    typed = match["quoted"] if match["quoted"] is not None else match["plain"]
    folder, name = os.path.split(typed)
    found: list[Completion] = []
    try:
        with os.scandir(Path(folder or ".").expanduser()) as entries:
            for entry in entries:
                if not entry.name.lower().startswith(name.lower()):
                    continue
                if entry.name.startswith(".") and not name.startswith("."):
                    continue
                if clean(entry.name) != entry.name or '"' in entry.name:
                    continue
                is_folder = entry.is_dir()
                full = os.path.join(folder, entry.name) + ("/" if is_folder else "")  # noqa: PTH118
                text = (
                    f'@"{full}"'
                    if " " in full and not is_folder
                    else f'@"{full}'
                    if " " in full
                    else f"@{full}"
                )
                hint = "folder" if is_folder else size_text(entry.stat().st_size)
                found.append(Completion(text if is_folder else text + " ", hint, match.start()))
                if len(found) >= _MOST_NAMES:
                    break
    except (OSError, ValueError, RuntimeError):
        return []
    return sorted(found, key=lambda c: (c.hint != "folder", c.text.lower()))
