"""Colours of a theme made so that text can be read: a contrast of at least 4.5 : 1, as WCAG 2.1 (1.4.3) asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from textual.color import BLACK, WHITE, Color, ColorParseError
from textual.highlight import HighlightTheme

CONTRAST = 4.5
_STEPS = 20
_ON = (
    ("footer-key-foreground", "footer-background"),
    ("footer-description-foreground", "footer-background"),
    ("block-cursor-foreground", "block-cursor-background"),
    ("button-color-foreground", "primary"),
)
"""Text, and the one colour that it stands on."""
_KINDS = ("primary", "secondary", "accent", "warning", "error", "success")


def contrast(one: Color, other: Color) -> float:
    """The ratio of two opaque colours' luminances, from 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Color) -> float:
    """Relative luminance by WCAG 2.1."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized)
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def readable(colour: Color, grounds: list[Color], least: float = CONTRAST) -> Color:
    """``colour``, or what comes nearest to it on its way to white or black and can be read on all ``grounds``."""
    towards = max((WHITE, BLACK), key=lambda end: min(contrast(end, ground) for ground in grounds))
    for step in range(_STEPS + 1):
        mixed = colour.blend(towards, step / _STEPS, alpha=1.0)
        if min(contrast(mixed, ground) for ground in grounds) >= least:
            return mixed
    return towards


def readable_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """A theme's variables, those that text is coloured with changed where they have too little contrast."""

    def colour(name: str) -> Color | None:
        try:
            return Color.parse(variables[name])
        except (KeyError, ColorParseError):
            return None

    made = dict(variables)
    grounds = [
        c for name in ("background", "surface", "panel") if (c := colour(name)) is not None and c.a == 1
    ]
    boost = colour("boost")
    if not grounds:  # the terminal's own colours, which nobody knows
        return made
    if boost is not None:
        grounds += [ground + boost for ground in grounds]
    for name in ("foreground", "button-foreground"):
        if (text := colour(name)) is not None:
            made[name] = readable(text, grounds).hex
    text, cursor = colour("foreground"), colour("block-cursor-blurred-background")
    if text is not None and cursor is not None:
        beneath = [ground + cursor for ground in grounds]
        made["block-cursor-blurred-foreground"] = readable(text, beneath).hex
    for kind in _KINDS:
        if (text := colour(f"text-{kind}")) is not None:
            muted = colour(f"{kind}-muted")
            beneath = [ground + muted for ground in grounds] if muted is not None else []
            made[f"text-{kind}"] = readable(text, grounds + beneath).hex
    for name, under in _ON:
        ground, text = colour(under), colour(name)
        if ground is None or ground.a < 1:
            continue
        if text is not None:
            made[name] = readable(text, [ground]).hex
        elif variables.get(name, "").startswith("auto"):
            made[name] = (WHITE if contrast(WHITE, ground) >= CONTRAST else BLACK).hex
    return made


class CodeColours(HighlightTheme):
    """Textual's colours of code, none of them faded into the background."""

    STYLES = {  # noqa: RUF012 -- as HighlightTheme declares it
        token: re.sub(r" \d+%", "", re.sub(r"^\$text \d+%$", "$text-muted", style))
        for token, style in HighlightTheme.STYLES.items()
    }
