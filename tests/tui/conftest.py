"""Makes Textual's tests quick: its pilot sleeps three times after each key, and each application parses all styles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic, process_time
from typing import Any

import pytest
from textual.css.stylesheet import Stylesheet

_SLEEP = 0.003
_IDLE = 0.3
"""The share of a processor that a process takes at most which waits for something."""


async def _wait_for_idle(min_sleep: float = 0.0, max_sleep: float = 1.0) -> None:
    """As ``textual._wait.wait_for_idle``, which sleeps for 20 ms at least."""
    end = monotonic() + max_sleep
    while monotonic() < end:
        before, began = process_time(), monotonic()
        await asyncio.sleep(_SLEEP)
        if process_time() - before < _IDLE * (monotonic() - began):
            return


_parse = Stylesheet._parse_rules
_parsed: dict[Any, Any] = {}


def _parse_rules(sheet: Stylesheet, css: str, *arguments: Any, **options: Any) -> Any:
    """Rules never change, so that one application's are another's."""
    key = (css, arguments, *options.items(), *sheet._variables.items())
    if key not in _parsed:
        _parsed[key] = _parse(sheet, css, *arguments, **options)
    return _parsed[key]


@pytest.fixture(scope="session", autouse=True)
def _quick_pilot() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("textual.pilot.wait_for_idle", _wait_for_idle)
        patch.setattr(Stylesheet, "_parse_rules", _parse_rules)
        yield
