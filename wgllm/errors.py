"""Errors that a user sees: one line of text, one exit code each (the README lists the codes)."""

from __future__ import annotations

import os
from pathlib import Path


class WgllmError(Exception):
    """Base of every error that wgllm raises on purpose. ``str(error)`` is one line for the user."""

    exit_code = 1


class UsageError(WgllmError):
    """The caller asked for something that does not exist or does not fit together."""

    exit_code = 2


class ModelNotFoundError(WgllmError):
    """No model of that name or path."""

    exit_code = 3


class DownloadError(WgllmError):
    """A model could not be fetched, or what came was not what was asked for."""

    exit_code = 3


class ModelFileError(WgllmError):
    """A model file is malformed or holds what wgllm does not support.

    ``field`` names the place in the file: a metadata key, ``tensor blk.0.attn_q.weight``, ``header``.
    """

    exit_code = 4

    def __init__(self, path: str | os.PathLike[str], field: str, problem: str) -> None:
        super().__init__(f"{printable(Path(path).name)}: {printable(field)}: {printable(problem)}")
        self.path = Path(path)
        self.field = field
        self.problem = problem


class ModelFileChanged(ModelFileError):
    """A model file is not what it was when it was opened: it was written to, or cut off."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "file", "has changed since the server opened it; start the server again")


class DeviceError(WgllmError):
    """No usable GPU, or the GPU was lost."""

    exit_code = 5


class NumericError(WgllmError):
    """A NaN or an infinity reached the logits; the message names the first layer that has one."""


class MismatchError(NumericError):
    """A node's numbers are not those that NumPy makes of the same inputs; the message names node and element."""


class PromptCacheError(WgllmError):
    """A prompt cache could not be read or written, or is not one of this model."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{printable(os.fspath(path))}: prompt cache: {printable(problem)}")


class WorkerError(WgllmError):
    """The process that runs the model ended, could not be started, or failed in a way that has no class of its own."""


class ServeError(WgllmError):
    """The server could not be started, as where its port is taken."""


class SessionStoreError(WgllmError):
    """The database of conversations cannot be used: the message says whether it is locked, full, damaged or too new."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{printable(os.fspath(path))}: conversations: {printable(problem)}")


class SessionFileError(WgllmError):
    """An exported conversation could not be written or read; ``origin`` is the file's path, or what stands for it."""

    def __init__(self, origin: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{printable(os.fspath(origin))}: {printable(problem)}")


class Cancelled(Exception):
    """A step was given up between two nodes, because its request was cancelled. Never reaches a user."""


def printable(text: str, limit: int = 200) -> str:
    """``text`` (perhaps from a hostile file) without control characters and cut to ``limit`` characters."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
