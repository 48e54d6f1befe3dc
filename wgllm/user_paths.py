"""Paths as users type them."""

from __future__ import annotations

from pathlib import Path

from wgllm.errors import UsageError, printable


def user_path(text: str) -> Path:
    """The path, with ``~`` and ``~name`` as the folders that they stand for. Raises UsageError."""
    if "\0" in text:
        raise UsageError(f"{printable(text, 60)} is no path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        name = printable(Path(text).parts[0], 60)
        raise UsageError(
            f"{name}: there is no such user, or no home folder; write ./{name} for a file"
        ) from None
