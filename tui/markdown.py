"""Markdown as replies have it: rendered while it streams, code with a bar to copy it by."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, ClassVar
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.css.query import NoMatches
from textual.events import Click
from textual.highlight import highlight
from textual.message import Message
from textual.widgets import Label, Markdown, Static
from textual.widgets.markdown import MarkdownBlock, MarkdownFence

from wgllm.tui.colours import CodeColours
from wgllm.tui.table import TableBlock
from wgllm.tui.text import clean_line, count

# Highlighting begins anew with every piece that is added. Code up to this length is highlighted at once; longer code
# when it is complete, up to another length and on a thread: key presses would have to wait for more.
_LONGEST_AT_ONCE = 3_000
_LONGEST_HIGHLIGHTED = 60_000


def _parser() -> MarkdownIt:
    """HTML is text: Textual would leave it out, and with it what a model says."""
    return MarkdownIt("gfm-like").disable(["html_block", "html_inline"])


@cache
def _prepare_parsing() -> None:
    """Makes the tables of the parser's URLs, which two threads must not begin at once."""
    _parser().parse("[a](http://b.c/%20) http://b.c")


def _parsed(text: str) -> tuple[list[Token], bool]:
    """The tokens of a text, and whether it defines links that earlier parts may refer to."""
    environment: dict[str, Any] = {}
    tokens = _parser().parse(text, environment)
    return tokens, bool(environment.get("references"))


def coloured(code: str, language: str, ansi: bool, dark: bool) -> Content:
    """Highlighted code; with ``ansi`` in the terminal's own colours."""
    if ansi:
        return MarkdownFence.highlight(code, language, ansi, dark)
    return highlight(code, language=language or None, theme=CodeColours)


class CodeBar(Static):
    """The line above code."""

    def on_click(self, event: Click) -> None:
        event.stop()
        fence = self.parent
        assert isinstance(fence, CodeFence)
        fence.action_copy()


class CodeFence(MarkdownFence):
    """A block of code; a click on its bar, or c and Enter while it has the focus, copy it."""

    can_focus = True
    BINDINGS: ClassVar[list[BindingType]] = [Binding("c,enter", "copy", "Copy code")]

    class Copied(Message):
        """The code is to be copied."""

        def __init__(self, code: str) -> None:
            self.code = code
            super().__init__()

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        return Content(code) if len(code) > _LONGEST_AT_ONCE else coloured(code, language, ansi, dark)

    def on_mount(self) -> None:
        self.complete()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self.complete()

    def complete(self) -> None:
        """Highlights long code, unless more of it may come."""
        reply = self._markdown
        assert isinstance(reply, ReplyMarkdown)
        if reply.streaming or not _LONGEST_AT_ONCE < len(self.code) <= _LONGEST_HIGHLIGHTED:
            return
        ansi, dark = self.app.native_ansi_color, self.app.current_theme.dark
        self.run_worker(self._highlight_long(self.code, self.lexer, ansi, dark), exclusive=True)

    async def _highlight_long(self, code: str, language: str, ansi: bool, dark: bool) -> None:
        made = await asyncio.to_thread(coloured, code, language, ansi, dark)
        if code == self.code:
            self._highlighted_code = made
            self.set_content(made)

    def compose(self) -> ComposeResult:
        yield CodeBar(self._bar(), markup=False, classes="code-bar")
        yield Label(self._highlighted_code, id="code-content", expand=True)

    def _bar(self) -> str:
        language = clean_line(self.lexer.split()[0], 30) if self.lexer.split() else "code"
        return f"{language} · copy"

    def _copy_context(self, block: MarkdownBlock) -> None:
        super()._copy_context(block)
        try:
            self.query_one(CodeBar).update(self._bar())
        except NoMatches:
            return  # it is made with the new language

    def action_copy(self) -> None:
        self.post_message(self.Copied(self.code))


class ReplyMarkdown(Markdown):
    """Markdown of a model, which has been cleaned."""

    def __init__(self, text: str = "", *, streaming: bool = False) -> None:
        _prepare_parsing()
        super().__init__(text, parser_factory=_parser, open_links=False)
        self.streaming = streaming

    def get_block_class(self, block_name: str) -> type[MarkdownBlock]:
        if block_name in ("fence", "code_block"):
            return CodeFence
        if block_name == "table_open":
            return TableBlock
        return super().get_block_class(block_name)

    def unhandled_token(self, token: Token) -> MarkdownBlock | None:
        """Nothing is left out: what has no widget is shown as it was written."""
        if not token.content:
            return None
        block = MarkdownBlock(self, token)
        block.set_content(Content(token.content))
        return block

    async def finish(self, text: str) -> None:
        """The whole text at the end. What was rendered piece by piece stays, unless the whole reads differently."""
        self.streaming = False
        tokens, references = await asyncio.to_thread(_parsed, text)
        if references or self._shown() != [
            (self._class_of(token), *token.map) for token in tokens if token.level == 0 and token.map
        ]:
            await self.update(text)
            return
        for fence in self.query(CodeFence):
            fence.complete()

    def _class_of(self, token: Token) -> type[MarkdownBlock]:
        return self.get_block_class(token.tag if token.type == "heading_open" else token.type)

    def _shown(self) -> list[tuple[type[MarkdownBlock], int, int]]:
        """The blocks that there are, and which lines they show."""
        return [(type(b), *b.source_range) for b in self.children if isinstance(b, MarkdownBlock)]

    @on(Markdown.LinkClicked)
    def _open(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        if urlsplit(event.href).scheme in ("http", "https", "mailto"):
            self.app.open_url(event.href)
        else:
            self.notify(
                f"Not opened, since it is no web address: {clean_line(event.href, 100)}", markup=False
            )


def lines_of(code: str) -> str:
    """How much code was copied."""
    return count(code.count("\n") + 1, "line") + " of code"
