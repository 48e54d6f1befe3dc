"""Markdown that came in pieces shows what it would show as a whole."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.content import Content
from textual.widget import Widget
from textual.widgets.markdown import MarkdownBlock

from tests.tui.running import in_loop
from wgllm.tui import markdown
from wgllm.tui.markdown import CodeFence, ReplyMarkdown
from wgllm.tui.table import TableText, column_widths, table_lines

ROOT = Path(__file__).parents[2]
PIECES = [
    "# Title\n\n", "A *para* with `code` and **bold**\nnext line\n\n", "- one\n- two\n  - nested\n\n",
    "1. a\n2. b\n\n   para in b\n\n", "```python\ndef f():\n    return 1\n```\n\n", "~~~\ntext\n~~~\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n", "> quote\n> more\n\n> other\n", "Setext\n===\n", "text\n---\n",
    "    indented code\n    more\n\n", "see [x] and [y](http://a.b)\n\n", "<b>html</b> text\n\n", "* a\n\n* b\n\n",
    "```\nunclosed", "\n", "word ", "日本 ", "1) x\n", "---\n\n", "a  \nb\n", "[x]: http://q.r\n",
]  # fmt: skip


class Two(App[None]):
    """The same text twice: in pieces, and whole."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.whole = ReplyMarkdown("", streaming=True), ReplyMarkdown("")
        self.updates = 0

    def compose(self) -> ComposeResult:
        yield self.pieces
        yield self.whole


def blocks(widget: Widget) -> list[Any]:
    """What a widget shows: kinds of blocks, their texts with styles, what lies in them."""
    found: list[Any] = []
    for child in widget.children:
        if isinstance(child, MarkdownBlock):
            content = child._content
            spans = [(s.start, s.end, str(s.style)) for s in content.spans]
            found.append((type(child), content.plain, spans, getattr(child, "code", None), blocks(child)))
        elif isinstance(child, TableText):
            found.append([[str(cell) for cell in row] for row in (child.header, *child.rows)])
        else:
            found += blocks(child)
    return found


@in_loop
async def test_in_pieces_as_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    updated, update = [], ReplyMarkdown.update
    app = Two()
    async with app.run_test(size=(80, 40)) as pilot:
        for _ in range(12):
            text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 9)))
            await app.pieces.update("")
            app.pieces.streaming = True
            at = 0
            while at < len(text):
                n = rng.choice([1, 2, 3, 5, 9, 30, 200])
                await app.pieces.append(text[at : at + n])
                at += n
            with monkeypatch.context() as patched:
                patched.setattr(ReplyMarkdown, "update", lambda self, t: updated.append(t) or update(self, t))
                await app.pieces.finish(text)
            await app.whole.update(text)
            await pilot.pause()
            assert blocks(app.pieces) == blocks(app.whole), text
    assert all("[x]: " in text for text in updated), "the rest was right without"
    assert updated


@in_loop
async def test_long_code_is_highlighted_when_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "_LONGEST_AT_ONCE", 50)
    monkeypatch.setattr(markdown, "_LONGEST_HIGHLIGHTED", 500)
    text = "```python\n" + "return 1  # one\n" * 10 + "```\n"
    app = Two()
    async with app.run_test() as pilot:
        for at in range(0, len(text), 20):
            await app.pieces.append(text[at : at + 20])
        await pilot.pause()
        fence = app.pieces.query_one(CodeFence)
        assert not fence._highlighted_code.spans
        await app.pieces.finish(text)
        await app.workers.wait_for_complete()
        assert fence is app.pieces.query_one(CodeFence) and fence._highlighted_code.spans
        app.theme = "textual-light"
        await pilot.pause()
        await app.workers.wait_for_complete()
        assert fence._highlighted_code.spans
        await app.whole.update(text.replace("1", "1" * 50))
        await pilot.pause()
        await app.workers.wait_for_complete()
        assert not app.whole.query_one(CodeFence)._highlighted_code.spans, "too long"


def test_tables_fit() -> None:
    def shown(width: int, *rows: list[str]) -> list[str]:
        header, *others = [[Content(cell) for cell in row] for row in rows]
        return [line.plain.rstrip() for line in table_lines(header, others, width)]

    assert shown(40, ["a", "name"], ["1", "日本"]) == ["a   │ name", "────┼─────", "1   │ 日本"]
    narrow = shown(20, ["n", "text"], ["1", "words that go on for longer"], ["2", ""])
    assert max(cell_len(line) for line in narrow) <= 20
    assert narrow[2:] == ["1   │ words that go", "    │ on for longer", "2   │"]
    assert shown(20, ["only"]) == ["only", "────"]
    for width in range(1, 60):
        widths = column_widths([3, 50, 8, 20], width)
        assert all(w >= 3 for w in widths) and sum(widths) + 9 <= max(width, 21)


@in_loop
async def test_a_link_in_a_table_can_be_clicked(monkeypatch: pytest.MonkeyPatch) -> None:
    app, opened = Two(), []
    monkeypatch.setattr(app, "open_url", opened.append)
    async with app.run_test(size=(60, 20)) as pilot:
        await app.whole.update("| a | b |\n|---|---|\n| 1 | [here](http://x.y/z) |\n")
        await pilot.pause()
        assert await pilot.click(TableText, offset=(7, 2))
        await pilot.pause()
        assert opened == ["http://x.y/z"]
        await pilot.resize_terminal(12, 20)
        table, waited = app.whole.query_one(TableText), 0
        while table.size.width > 12:
            await pilot.pause(0.01)
            assert (waited := waited + 1) < 6000


def test_threads_may_parse_at_once() -> None:
    code = """
import sys, threading
from wgllm.tui import markdown
markdown.ReplyMarkdown("")
sys.setswitchinterval(1e-6)
failed, together = [], threading.Barrier(4)
def parse():
    together.wait()
    try:
        markdown._parsed("[a](http://b.c/%20é)")
    except Exception as error:
        failed.append(repr(error))
threads = [threading.Thread(target=parse) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit("".join(failed) or 0)
"""
    # In a process of its own: what is not safe is what the first one prepares.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
