"""huggingface_hub's settings while files are fetched with it: the same in all threads that fetch."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from typing import Any


class _Shared:
    """Changes a setting of huggingface_hub's while any thread is in it: several may fetch at once."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0
        self._undo: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undo = self._change()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo()


def _cut_small() -> Callable[[], None]:
    constants: Any = importlib.import_module("huggingface_hub.constants")
    usual = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = min(usual, 1 << 18)
    return lambda: setattr(constants, "DOWNLOAD_CHUNK_SIZE", usual)


def _silence() -> Callable[[], None]:
    utils = importlib.import_module("huggingface_hub.utils")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    hidden = not utils.are_progress_bars_disabled()
    if hidden:
        utils.disable_progress_bars()

    def undo() -> None:
        logger.setLevel(level)
        if hidden:
            utils.enable_progress_bars()

    return undo


_PIECES, _SILENCE = _Shared(_cut_small), _Shared(_silence)


def small_pieces() -> _Shared:
    """huggingface_hub hands over 10 MB at once: on a slow line nothing would move for many seconds."""
    return _PIECES


def quiet() -> _Shared:
    """Without huggingface_hub's warnings and its bar: what a download tells goes through ``Progress``."""
    return _SILENCE
