"""Screens as text: their characters, and beneath a letter for the style of each cell, so that a diff can be read."""

from __future__ import annotations

import difflib
import string
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.style import Style
from textual.app import App

_LETTERS = "." + string.ascii_letters + string.digits
_ATTRIBUTES = ("bold", "dim", "italic", "underline", "reverse", "strike")


class Cell(NamedTuple):
    """What stands in one column of one line."""

    text: str
    """Empty: the right half of the character to the left."""
    style: Style


Screen = list[list[Cell]]


_NOTHING = Cell(" ", Style())


def cells(app: App[Any]) -> Screen:
    """What is shown, cell by cell, as the terminal would get it; of what lies behind a dialog nothing."""
    dialog = None
    if len(app.screen_stack) > 1:  # beside it there may be a message, with which no picture is taken
        dialog = max((child.region for child in app.screen.children), key=lambda region: region.area)
    lines = app.screen._compositor.render_strips()
    screen = []
    for strip in lines[: app.size.height]:
        row: list[Cell] = []
        for segment in strip:
            for character in segment.text:
                style = segment.style or Style()
                row += [Cell(character, style), *[Cell("", style)] * (cell_len(character) - 1)]
        if dialog is not None:  # when it is drawn anew what lies behind comes at another time
            inside = dialog.y <= len(screen) < dialog.bottom
            row = [
                cell if inside and dialog.x <= x < dialog.right else _NOTHING for x, cell in enumerate(row)
            ]
        screen.append(row)
    return screen


def characters(screen: Screen) -> str:
    return "\n".join("".join(cell.text for cell in row).rstrip() for row in screen)


def style_text(style: Style, text: str = "x") -> str:
    """``bold #ffffff on #121212``; of a blank nothing but what one can see."""
    if text.isspace() and not (style.underline or style.reverse or style.strike):
        style = Style(bgcolor=style.bgcolor)
    named = [name for name in _ATTRIBUTES if getattr(style, name)]
    colours = ["default" if c is None else c.get_truecolor().hex for c in (style.color, style.bgcolor)]
    return " ".join([*named, f"{colours[0]} on {colours[1]}"])


def described(screens: dict[str, Screen]) -> str:
    """One screen in several themes, which must differ in styles alone: characters, styles, and what they look like.

    A letter stands for what a cell looks like in all of the themes; the legend has them one after the other.
    """
    first = next(iter(screens.values()))
    for name, screen in screens.items():
        if characters(screen) != characters(first):
            return f"in {name} the text differs:\n{characters(screen)}"
    letters: dict[tuple[str, ...], str] = {}
    grid = []
    for rows in zip(*screens.values(), strict=True):
        looks = [
            tuple(style_text(cell.style, cell.text) for cell in alike) for alike in zip(*rows, strict=True)
        ]
        grid.append("".join(letters.setdefault(look, _LETTERS[len(letters)]) for look in looks))
    legend = [f"{letter} = {' | '.join(look)}" for look, letter in letters.items()]
    return "\n".join([characters(first), "", *grid, "", f"themes: {' | '.join(screens)}", *legend, ""])


def difference(before: str, now: str) -> str:
    """The lines that differ, marked with - (as it was) and +."""
    lines = difflib.unified_diff(before.split("\n"), now.split("\n"), "as it was", "now", lineterm="", n=1)
    return "\n".join(lines)
