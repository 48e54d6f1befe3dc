"""The line of figures: what runs and where, how fast, and how much of the context is used."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from textual.content import Content
from textual.widget import Widget

from wgllm.tui.text import clean_line

WARN_AT = 0.8
"""The share of the context from which on there is a warning."""
_FULL_AT = 0.95


@dataclass
class Figures:
    """What the line tells."""

    model: str = ""
    where: str = ""
    doing: str = ""
    """``loading 40 %``, ``34.2 tok/s`` …"""
    used: int = 0
    size: int = 0
    fetching: str = ""
    """What is downloaded behind, and how far it is."""

    @property
    def middle(self) -> str:
        return " · ".join(filter(None, (self.doing, self.fetching)))

    @property
    def share(self) -> float:
        return self.used / self.size if self.size else 0.0

    @property
    def context(self) -> str:
        if not self.size:
            return ""
        warning = "⚠ " if self.share >= WARN_AT else ""
        return f"{warning}context {self.used:,}/{self.size:,} ({self.share:.0%})"

    @property
    def short_context(self) -> str:
        return f"{'⚠ ' if self.share >= WARN_AT else ''}ctx {self.share:.0%}" if self.size else ""


def line(figures: Figures, width: int) -> tuple[str, str, str]:
    """What is told in ``width`` columns: the model and where it runs, what it does, the context."""
    model, where = clean_line(figures.model, 60), clean_line(figures.where, 200)
    # From the fullest to the shortest that fits.
    short_where = where.split(" (")[0]
    forms = (
        (f"{model} · {where}" if where else model, figures.context),
        (f"{model} · {short_where}" if where else model, figures.context),
        (f"{model} · {short_where.split(' on ')[0]}" if where else model, figures.context),
        (model, figures.context),
        (model, figures.short_context),
        (model[: max(0, width // 4)], figures.short_context),
    )
    for left, right in forms:
        texts = [t for t in (left, figures.middle, right) if t]
        if sum(map(cell_len, texts)) + 3 * (len(texts) - 1) <= width:
            return left, figures.middle, right
    return "", figures.middle[:width], figures.short_context


class StatusLine(Widget):
    """Always there, in one row."""

    DEFAULT_CSS = "StatusLine { height: 1; }"

    def __init__(self) -> None:
        super().__init__(id="status")
        self.figures = Figures()

    def show(self, **changes: str | int) -> None:
        """Changes what is told."""
        for name, value in changes.items():
            setattr(self.figures, name, value)
        self.refresh()

    @property
    def text(self) -> str:
        return " · ".join(filter(None, line(self.figures, self.size.width)))

    def render(self) -> Content:
        width = self.size.width
        left, middle, right = line(self.figures, width)
        gap = max(1, width - cell_len(left) - cell_len(middle) - cell_len(right))
        share = self.figures.share
        style = "$text-error bold" if share >= _FULL_AT else "$text-warning bold" if share >= WARN_AT else ""
        if not middle:
            return Content.assemble(left, " " * gap, (right, style))
        before = max(1, gap // 2) if left else 0
        return Content.assemble(
            left, " " * before, (middle, "bold"), " " * max(1, gap - before), (right, style)
        )
