"""The token inspector: what the model might have said instead, token by token, and branching from there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Button, OptionList, Static
from textual.widgets.option_list import Option

from wgllm.tui.picker_models import column
from wgllm.tui.tokens import SURPRISE_BITS, Branch, Candidate, Piece, Token, lay_out, tokens_of, visible

__all__ = ["Branch", "Candidate", "Token", "TokenInspector", "tokens_of"]

_LEVELS = ("sure", "likely", "unsure", "surprising")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class TokenText(ScrollView, can_focus=True):
    """The reply; arrows and clicks move over its tokens. Draws only the lines that are seen."""

    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", show=False),
        Binding("right", "move(1)", show=False),
        Binding("up", "line(-1)", show=False),
        Binding("down", "line(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "first", show=False),
        Binding("end", "last", show=False),
        Binding("n", "surprise(1)", show=False),
        Binding("p", "surprise(-1)", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {*(f"token--{level}" for level in _LEVELS), "token--here"}
    # Each level has an attribute of its own, since colours may be missing.
    DEFAULT_CSS = """
    TokenText { background: $surface; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    TokenText > .token--sure { color: $foreground; }
    TokenText > .token--likely { color: $text-primary; text-style: italic; }
    TokenText > .token--unsure { color: $text-warning; text-style: underline; }
    TokenText > .token--surprising { color: $text-error; text-style: bold underline; }
    TokenText > .token--here { background: $block-cursor-background; color: $block-cursor-foreground;
        text-style: bold reverse; }
    """

    index: reactive[int] = reactive(0, init=False)

    class Moved(Message):
        pass

    def __init__(self, tokens: Sequence[Token], index: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._lines: list[list[Piece]] = []
        self._first_lines: list[int] = []
        """Of each token, the line in which it begins; ascending."""
        self.set_reactive(TokenText.index, index)

    def on_resize(self, event: Resize) -> None:
        width = max(1, self.scrollable_content_region.width)
        self._lines = lay_out([token.text for token in self._tokens], width)
        self._first_lines = [0] * len(self._tokens)
        for y in range(len(self._lines) - 1, -1, -1):
            for piece in self._lines[y]:
                self._first_lines[piece.token] = y
        self.virtual_size = Size(width, len(self._lines))
        self._follow()

    def render_line(self, y: int) -> Strip:
        y += round(self.scroll_offset.y)
        base = self.rich_style
        if y >= len(self._lines):
            return Strip.blank(self.size.width, base)
        segments = [Segment(piece.text, self._style(piece.token, base)) for piece in self._lines[y]]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def _style(self, token: int, base: Style) -> Style:
        level, names = self._tokens[token].level, []
        if level is not None:
            names.append(f"token--{_LEVELS[level]}")
        if token == self.index:
            names.append("token--here")
        return Style.combine([base, *(self.get_component_rich_style(name, partial=True) for name in names)])

    def validate_index(self, index: int) -> int:
        return min(max(index, 0), len(self._tokens) - 1)

    def watch_index(self) -> None:
        self.refresh()
        self._follow()
        self.post_message(self.Moved())

    def _follow(self) -> None:
        if self._first_lines:
            y = self._first_lines[self.index]
            self.scroll_to_region(Region(0, y, 1, 1), animate=False, force=True)

    def on_click(self, event: Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        y = offset.y + round(self.scroll_offset.y)
        if y < len(self._lines) and (row := self._lines[y]):
            x = min(offset.x, row[-1].start + row[-1].width - 1)
            self.index = next(p.token for p in row if x < p.start + p.width)

    def action_move(self, by: int) -> None:
        self.index += by

    def action_line(self, by: int) -> None:
        """To the token that stands above or below."""
        here = self._first_lines[self.index]
        x = next(p.start for p in self._lines[here] if p.token == self.index)
        y = here + by
        while 0 <= y < len(self._lines):
            own = [p for p in self._lines[y] if p.token != self.index]
            if own:
                self.index = min(own, key=lambda p: abs(p.start - x)).token
                return
            y += by

    def action_page(self, by: int) -> None:
        target = self._first_lines[self.index] + by * max(1, self.size.height - 1)
        at = bisect_left(self._first_lines, max(0, target))
        self.index = at

    def action_first(self) -> None:
        self.index = 0

    def action_last(self) -> None:
        self.index = len(self._tokens) - 1

    def action_surprise(self, by: int) -> None:
        """To the next token that is unsure or surprising."""
        at = self.index + by
        while 0 <= at < len(self._tokens):
            if (self._tokens[at].level or 0) >= 2:
                self.index = at
                return
            at += by


class Candidates(OptionList):
    """What might have stood there. Left and right go on moving over the reply."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "screen.move(-1)", show=False),
        Binding("right", "screen.move(1)", show=False),
    ]


class TokenInspector(ModalScreen["Branch | None"]):
    """Dismisses with the branch that was chosen, or None. ``tokens`` must not be empty."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("enter", "candidates", show=False),
    ]
    DEFAULT_CSS = """
    TokenInspector { align: center middle; }
    TokenInspector #inspector {
        width: 100%; max-width: 120; height: 100%; max-height: 48;
        border: round $primary; background: $surface; padding: 0 1;
    }
    TokenInspector TokenText { height: 1fr; min-height: 4; }
    TokenInspector #legend { height: 1; color: $text-muted; text-wrap: nowrap; }
    TokenInspector #about {
        height: 4; border-top: solid $foreground 20%; color: $text-muted;
    }
    TokenInspector Candidates {
        height: 9; background: $surface;
        scrollbar-size-vertical: 1; scrollbar-gutter: stable;
    }
    TokenInspector .buttons { height: 1; }
    TokenInspector .buttons Button { margin-right: 1; min-width: 0; width: auto; }
    """

    def __init__(self, tokens: Sequence[Token], *, index: int = 0) -> None:
        super().__init__()
        if not tokens:
            raise ValueError("a reply without tokens has nothing to look into")
        self._tokens = tokens
        self._index = index

    def compose(self) -> ComposeResult:
        with Vertical(id="inspector") as box:
            box.border_title = "Tokens"
            box.border_subtitle = "←→ · n p surprises · ⏎ branch"
            yield TokenText(self._tokens, self._index)
            yield Static("", id="legend", markup=False)
            yield Static("", id="about", markup=False)
            yield Candidates(markup=False, compact=True)
            with Horizontal(classes="buttons"):
                yield Button("Branch here", id="branch", variant="primary", compact=True)
                yield Button("Close", id="close", compact=True)

    def on_mount(self) -> None:
        self._text.focus()

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._show)

    @property
    def _text(self) -> TokenText:
        return self.query_one(TokenText)

    @property
    def _token(self) -> Token:
        return self._tokens[self._text.index]

    def action_move(self, by: int) -> None:
        self._text.index += by

    @on(TokenText.Moved)
    def _show(self) -> None:
        token, text = self._token, self._text
        self.query_one("#legend", Static).update(self._legend())
        self.query_one("#about", Static).update(self._about(token, text.index))
        candidates = self.query_one(Candidates)
        width = candidates.scrollable_content_region.width
        options = [Option(_line(c, token, width), id=str(c.token_id)) for c in token.choices]
        if token.choices and token.rest >= 0.0005:
            options.append(Option(_rest_line(token, width), disabled=True))
        candidates.set_options(options)
        own = [i for i, c in enumerate(token.choices) if c.token_id == token.token_id]
        candidates.highlighted = own[0] if own else None

    def _legend(self) -> Content:
        low = (0.0, *SURPRISE_BITS)
        wide = self.query_one("#legend").size.width >= 50
        parts: list[Content] = []
        for name, bits in zip(_LEVELS, low, strict=True):
            style = self._text.get_component_rich_style(f"token--{name}", partial=True)
            parts += [Content.assemble((name, str(style))), Content(f" {bits:g}+  " if wide else " ")]
        return Content("").join(parts) + Content("bits" if wide else "")

    def _about(self, token: Token, index: int) -> str:
        lines = [f"{visible(token.text)}  token {index + 1:,} of {len(self._tokens):,}, id {token.token_id}"]
        surprise = token.surprise
        if surprise is None:
            return lines[0] + "\nIts probabilities were not recorded."
        lines.append(f"surprise {surprise:.1f} · entropy ≥ {token.entropy:.1f} bits")
        kept = [c for c in token.choices if c.kept is not None]
        if token.n_kept is not None:
            lines.append(f"samplers left {token.n_kept:,} · → their chances")
        elif not kept:
            lines.append("what the samplers kept is not known")
        return "\n".join(lines)

    def action_candidates(self) -> None:
        self.query_one(Candidates).focus()

    @on(Button.Pressed, "#branch")
    def _branch_here(self) -> None:
        self.query_one(Candidates).action_select()

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        token_id = int(event.option_id or 0)
        if token_id == self._token.token_id:
            about = self._about(self._token, self._text.index).split("\n")
            about[-1] = "it was taken; another one branches"
            self.query_one("#about", Static).update("\n".join(about))
        else:
            self.dismiss(Branch(self._text.index, token_id))

    @on(Button.Pressed, "#close")
    def _close(self) -> None:
        self.dismiss(None)


def _line(candidate: Candidate, token: Token, width: int) -> Content:
    """``● ␣dog  ██████▌  42.1 %  cut``."""
    own = candidate.token_id == token.token_id
    text = min(24, max(8, width // 3))
    after = ""
    if candidate.kept is False:
        after = "cut"
    elif candidate.kept:
        after = "kept" if candidate.chance is None else f"→ {_percent(candidate.chance)}"
    style = "bold" if own else ""
    bar = max(0, width - 2 - text - 1 - 8 - 10)
    return Content.assemble(
        ("● " if own else "  ", style), (column(visible(candidate.text), text), style), " ",
        (_bar(candidate.probability, bar), "$primary-muted" if candidate.kept is False else "$primary"),
        (f"{_percent(candidate.probability):>8}", style), (f"{after:>9}", style),
    )  # fmt: skip


def _rest_line(token: Token, width: int) -> Content:
    text = min(24, max(8, width // 3))
    bar = max(0, width - 2 - text - 1 - 8 - 10)
    return Content(
        "  " + column("all others", text) + " " + _bar(token.rest, bar) + f"{_percent(token.rest):>8}"
    )


def _bar(share: float, width: int) -> str:
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(width)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "<0.1 %"
