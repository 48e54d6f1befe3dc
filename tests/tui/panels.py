"""A small application around one screen, and waiting for what it shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from textual.app import App
from textual.css.query import NoMatches
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Static

PATIENCE = 60.0
NARROW = (40, 24)
USUAL = (80, 24)

HOSTILE = "evil\x1b]52;c;cGF5bG9hZA==\x07\x1b[2J\x9b31m\x00[bold red]\u202egnp[/]\nmodel"
"""A name that would set the clipboard, clear the screen, be markup, and turn its end around."""


class Panel(App[None]):
    """Shows a screen and keeps what it is dismissed with."""

    def __init__(self, screen: Screen[Any]) -> None:
        super().__init__()
        self.shown = screen
        self.answers: list[Any] = []

    def on_mount(self) -> None:
        self.push_screen(self.shown, self.answers.append)


Steps = Callable[[Pilot[None], Panel], Coroutine[Any, Any, None]]


def play(screen: Screen[Any], ready: Callable[[], object], steps: Steps, size: tuple[int, int]) -> list[Any]:
    """Shows ``screen``, runs ``steps`` once it is ready; returns what it was dismissed with."""
    app = Panel(screen)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await until(pilot, ready)
            await steps(pilot, app)
            await pilot.pause()

    asyncio.run(run())
    return app.answers


def now(holds: Callable[[], object]) -> bool:
    """Whether something holds; it does not while a widget that it looks at is not there yet."""
    try:
        return bool(holds())
    except NoMatches:
        return False


async def until(pilot: Pilot[Any], holds: Callable[[], object]) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(PATIENCE) if hasattr(asyncio, "timeout") else _Forever():
        while not now(holds):
            await asyncio.sleep(0.005)
    await pilot.pause()


class _Forever:
    """Python 3.10 has no asyncio.timeout."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def click(pilot: Pilot[Any], selector: str) -> None:
    """Clicks a button, once it takes a click again: for a moment after one it doesn't."""
    await until(pilot, lambda: not pilot.app.screen.query_one(selector).has_class("-active"))
    assert await pilot.click(selector)


def shown(app: App[Any]) -> str:
    """What stands on the screen, line by line."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in lines)


def text_of(app: App[Any], selector: str) -> str:
    return str(app.screen.query_one(selector, Static).content)


def assert_harmless(text: str) -> None:
    bad = [
        c for c in text if (ord(c) < 32 and c not in "\n") or 0x7F <= ord(c) <= 0x9F or c in "\u202e\u2066"
    ]
    assert not bad, bad
