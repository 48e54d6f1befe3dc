"""Makes tests of the screen dependable, whatever else the machine does, and quick."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest
from textual._context import active_app
from textual.css.stylesheet import Stylesheet
from textual.screen import Screen

_LONGEST = 5.0
"""Seconds that are waited at most where there is always something to do, as where a reply streams fast."""


async def _wait_for_idle(min_sleep: float = 0.0, max_sleep: float = _LONGEST) -> None:
    """Until all is done and painted that can be done without waiting for a thread, a timer or another process.

    ``textual._wait.wait_for_idle`` looks at the processor's time instead: on a machine with other work, a process that
    gets none of it looks idle.
    """
    loop: Any = asyncio.get_running_loop()
    end = monotonic() + max_sleep
    while monotonic() < end:
        await asyncio.sleep(0)  # twice, so that what comes from without meanwhile is seen too
        await asyncio.sleep(0)
        if loop._ready:
            continue
        stack = active_app.get().screen_stack
        if not stack or not _unpainted(stack[-1]):
            return
        stack[-1]._on_timer_update()  # now, not when it is time


def _unpainted(screen: Screen[Any]) -> bool:
    """Whether the next refresh would do something."""
    return not screen.app._batch_count and bool(
        screen._layout_required
        or screen._scroll_required
        or screen._repaint_required
        or screen._recompose_required
        or screen._dirty_widgets
        or screen._callbacks
    )


_parse = Stylesheet._parse_rules
_parsed: dict[Any, Any] = {}


def _parse_rules(sheet: Stylesheet, css: str, *arguments: Any, **options: Any) -> Any:
    """Rules never change, so that one application's are another's."""
    key = (css, arguments, *options.items(), *sheet._variables.items())
    if key not in _parsed:
        _parsed[key] = _parse(sheet, css, *arguments, **options)
    return _parsed[key]


@pytest.fixture(scope="session", autouse=True)
def _patient_pilot() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pilot", "app"):
            patch.setattr(f"textual.{module}.wait_for_idle", _wait_for_idle)
        patch.setattr(Stylesheet, "_parse_rules", _parse_rules)
        yield
