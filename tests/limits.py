"""Limits of what hostile input may cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

LONGEST = 20.0
"""Seconds. What a budget does not end, or what grows with the square of its input, would take minutes or hours; what
ends as it should takes a second or two at most, where the machine is quick."""


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """What is done within it takes no more than ``LONGEST`` of this thread's own time."""
    began = time.thread_time()
    yield
    assert time.thread_time() - began < LONGEST
