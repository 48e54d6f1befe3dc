"""What the main screens look like: snapshots in two themes, contrast in all, and without colours.

After a change that is meant: ``pytest tests/tui/test_screens.py --update-snapshots``, then read the diff of
tests/data/screens. Another release of Textual may lay out and colour differently: with one, only words are compared.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import textual
from rich.style import Style
from textual.color import Color

from tests.tui import scenes
from tests.tui.running import Running, in_loop
from tests.tui.snapshots import Cell, Screen, cells, described, difference, style_text
from wgllm.tui.colours import CONTRAST, contrast
from wgllm.tui.inspector import TokenInspector

SCREENS = Path(__file__).parents[1] / "data" / "screens"
MADE_WITH = SCREENS / "textual.txt"
"""The release of Textual that they were made with."""
THEMES = {(80, 24): ("textual-dark", "textual-light"), (120, 40): ("textual-dark",)}
"""By size. In the other themes, contrast is looked at."""
SCENES = (
    scenes.welcome, scenes.conversation, scenes.streaming, scenes.sidebar, scenes.help_, scenes.settings,
    scenes.picker, scenes.inspector, scenes.banner,
)  # fmt: skip
NAMES = {
    "welcome", "conversation", "streaming", "search", "help", "settings", "picker", "inspector", "banner",
}  # fmt: skip
PANEL_THEMES = ("textual-dark", "textual-light", "nord", "solarized-light")
"""Those in which panels are looked at, which have few colours of their own."""


def release() -> str:
    """``8.2`` of ``8.2.8``."""
    return ".".join(textual.__version__.split(".")[:2])


async def taken(run: Running, theme: str) -> Screen:
    """The screen in a theme, once it stays as it is."""
    run.app.theme = theme
    run.app.clear_notifications()
    same, before = 0, cells(run.app)
    while same < 3:
        await asyncio.sleep(0.02)
        await run.pilot.pause()
        now = cells(run.app)
        same, before = same + 1 if now == before else 0, now
    return before


@pytest.mark.parametrize("size", THEMES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_screens_look_as_they_did(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    update = request.config.getoption("--update-snapshots")
    if update:
        SCREENS.mkdir(exist_ok=True)
        MADE_WITH.write_text(release() + "\n", encoding="utf-8", newline="\n")
    changed: dict[str, str] = {}

    @in_loop
    async def play() -> None:
        async with scenes.main_screens(tmp_path, size) as run:

            async def shot(name: str) -> None:
                if name in NAMES:
                    file = SCREENS / f"{name}-{size[0]}x{size[1]}.txt"
                    changed[name] = await compared(run, file, THEMES[size], update)

            await scenes.tour(run, shot, SCENES)

    scenes.still(monkeypatch)
    play()
    assert set(changed) == NAMES
    if different := [f"{name}\n{lines}" for name, lines in changed.items() if lines]:
        pytest.fail("\n\n".join([*different, "if this is meant: pytest --update-snapshots"]), pytrace=False)


async def compared(run: Running, file: Path, themes: tuple[str, ...], update: bool) -> str:
    """What differs from the file. Looks again, for a minute, before it says so: threads may not have been done."""
    same = update or MADE_WITH.read_text(encoding="utf-8").strip() == release()
    end = time.monotonic() + 60
    while True:
        # Beginning with the theme there is, since to change it costs most.
        screens = {
            theme: await taken(run, theme) for theme in sorted(themes, key=lambda t: t != run.app.theme)
        }
        now = described({theme: screens[theme] for theme in themes})
        if update:
            file.write_text(now, encoding="utf-8", newline="\n")
        before = file.read_text(encoding="utf-8")
        lines = difference(before, now) if same else difference(words(before), words(now))
        if not lines or time.monotonic() > end:
            return lines


def faint(screen: Screen, least: float) -> set[str]:
    """Letters and digits with too little contrast, with the line in which they stand."""
    found = set()
    for row in screen:
        for cell in row:
            style = cell.style
            if not cell.text.isalnum() or style.color is None or style.bgcolor is None:
                continue
            one, other = (Color(*c.get_truecolor()) for c in (style.color, style.bgcolor))
            if contrast(one, other) < least:
                line = "".join(c.text for c in row if c.style == style).strip()
                found.add(f"{line!r}: {style_text(style)}, {contrast(one, other):.2f}")
    return found


def test_all_text_can_be_read_in_every_theme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems: set[str] = set()

    @in_loop
    async def play() -> None:
        async with scenes.main_screens(tmp_path, (100, 44)) as run:

            async def shot(name: str) -> None:
                if name not in ("all at once", "settings", "picker", "inspector"):
                    return
                # Those with "ansi" in their names have the terminal's colours.
                themes = {theme for theme in run.app.available_themes if not theme.startswith("ansi")}
                for theme in themes if name == "all at once" else PANEL_THEMES:
                    screen = await taken(run, theme)
                    if isinstance(run.app.screen, TokenInspector):
                        run.app.screen._show()  # its legend is made of styles
                        screen = await taken(run, theme)
                    if len(run.app.screen_stack) > 1:  # what lies behind is meant to be dim
                        x, y, width, height = run.app.screen.query_one(f"#{name}").region
                        screen = [row[x : x + width] for row in screen[y : y + height]]
                    assert sum(cell.text.isalnum() for row in screen for cell in row) > 100
                    problems.update(f"{theme} {name} {text}" for text in faint(screen, CONTRAST))

            await scenes.tour(
                run, shot, (scenes.picker, scenes.inspector, scenes.settings, scenes.all_at_once)
            )

    scenes.still(monkeypatch)
    play()
    assert not problems, "\n".join(sorted(problems))


def test_without_colours_everything_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @in_loop
    async def play() -> None:
        async with scenes.main_screens(tmp_path, (80, 30)) as run:

            async def shot(name: str) -> None:
                screen = await taken(run, "textual-dark")
                seen.append(name)
                assert not faint(screen, 3), name
                for row in screen:
                    for colour in {c for cell in row for c in (cell.style.color, cell.style.bgcolor) if c}:
                        red, green, blue = colour.get_truecolor()
                        assert red == green == blue

            await scenes.tour(run, shot, (scenes.welcome, scenes.all_at_once))

    monkeypatch.setenv("NO_COLOR", "1")
    scenes.still(monkeypatch)
    play()
    assert seen == ["welcome", "all at once"]


def words(snapshot: str) -> str:
    """The words of its characters, a line each."""
    return "\n".join(word for word in snapshot.partition("\n\n.")[0].split() if any(map(str.isalnum, word)))


def test_no_snapshot_of_a_screen_that_is_gone() -> None:
    wanted = {f"{name}-{width}x{height}.txt" for name in NAMES for width, height in THEMES}
    assert {file.name for file in SCREENS.iterdir()} == wanted | {MADE_WITH.name}


def test_a_snapshot_tells_cell_by_cell_what_changed() -> None:
    plain, bold = Style.parse("#ffffff on #000000"), Style.parse("bold #ffffff on #000000")
    was = described({"dark": [[Cell("世", plain), Cell("", plain), Cell("a", plain)]]})
    now = described({"dark": [[Cell("世", plain), Cell("", plain), Cell("a", bold)]]})
    assert was == "世a\n\n...\n\nthemes: dark\n. = #ffffff on #000000\n"
    lines = difference(was, now).split("\n")
    assert {"-...", "+..a", "+a = bold #ffffff on #000000"} < set(lines) and len(lines) < 14


@pytest.mark.parametrize(
    ("one", "other", "ratio"), [("#000", "#fff", 21), ("#767676", "#fff", 4.54), ("#f00", "#00f", 2.15)]
)
def test_contrast_is_that_of_wcag(one: str, other: str, ratio: float) -> None:
    assert contrast(Color.parse(one), Color.parse(other)) == pytest.approx(ratio, abs=0.005)
