"""Tables of replies: one widget each, since one per cell makes a page of tables take half a second to lay out."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.content import Content
from textual.css.query import NoMatches
from textual.geometry import Size
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock

_LEAST = 3
"""Columns that a column keeps of a narrow screen."""
_GAP = 3
"""What stands between two: `` │ ``."""

Row = Sequence[Content]


def column_widths(natural: Sequence[int], width: int) -> list[int]:
    """Widths that fit ``width`` together: narrow columns keep theirs, wide ones share what is left."""
    left = width - _GAP * (len(natural) - 1)
    if sum(natural) <= left:
        return list(natural)
    widths, rest = [0] * len(natural), len(natural)
    for column in sorted(range(len(natural)), key=lambda i: natural[i]):
        widths[column] = max(_LEAST, min(natural[column], left // rest))
        left, rest = left - widths[column], rest - 1
    return widths


def table_lines(header: Row, rows: Sequence[Row], width: int) -> list[Content]:
    """The table in lines of ``width`` cells at most, unless it has too many columns for that."""
    natural = [max(_LEAST, *(c.cell_length for c in column)) for column in zip(header, *rows, strict=True)]
    widths = column_widths(natural, width)
    bar, lines = Content.styled(" │ ", "$foreground 30%"), []

    def add(row: Row, style: str) -> None:
        cells = [cell.wrap(w) for cell, w in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = [
                (cell[i] if i < len(cell) else Content("")).truncate(w, pad=True)
                for cell, w in zip(cells, widths, strict=True)
            ]
            lines.append(bar.join(part.stylize_before(style) if style else part for part in parts))

    add(header, "bold $text-primary")
    lines.append(Content.styled("─┼─".join("─" * w for w in widths), "$foreground 30%"))
    for row in rows:
        add(row, "")
    return lines


class TableText(Widget):
    """Draws a table as wide as there is room."""

    DEFAULT_CSS = "TableText { width: 1fr; height: auto; }"

    def __init__(self, header: Row, rows: Sequence[Row]) -> None:
        super().__init__()
        self.header, self.rows = header, rows
        self._made: tuple[int, list[Content]] = (0, [])

    def take(self, header: Row, rows: Sequence[Row]) -> None:
        self.header, self.rows = header, rows
        self._made = (0, [])
        self.refresh(layout=True)

    def _lines(self, width: int) -> list[Content]:
        if self._made[0] != width:
            self._made = width, table_lines(self.header, self.rows, max(1, width))
        return self._made[1]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines(width))

    def render(self) -> Content:
        return Content("\n").join(self._lines(self.content_size.width))

    def on_resize(self) -> None:
        self.refresh()

    def action_link(self, href: str) -> None:
        """A click on a link in a cell."""
        self.post_message(Markdown.LinkClicked(self.query_ancestor(Markdown), href))


class TableBlock(MarkdownBlock):
    """A table of a Markdown text."""

    DEFAULT_CSS = "TableBlock { width: 1fr; height: auto; }"

    def compose(self) -> ComposeResult:
        yield TableText(*self._contents())

    def _contents(self) -> tuple[list[Content], list[list[Content]]]:
        """Header and rows, each as long as the header."""
        header: list[Content] = []
        rows: list[list[Content]] = []

        def look(block: MarkdownBlock) -> None:
            for inner in block._blocks:  # they are named after their tokens
                if inner.name == "tr_open":
                    rows.append([])
                elif inner.name == "th_open":
                    header.append(inner._content)
                elif inner.name == "td_open":
                    rows[-1].append(inner._content)
                look(inner)

        look(self)
        n = len(header)
        return header, [[*row, *[Content("")] * n][:n] for row in rows if row]

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, TableBlock):
            try:
                table = self.query_one(TableText)
            except NoMatches:  # not composed yet
                pass
            else:
                table.take(*block._contents())
                self._copy_context(block)
                return
        await super()._update_from_block(block)
