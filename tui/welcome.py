"""What an empty conversation shows: how to begin, and what one could go on with."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from wgllm.sessions_types import SessionSummary
from wgllm.tui.conversation import Clickable
from wgllm.tui.text import clean_line, when

_WORDS = """\
Type below and press Enter.

/ shows the commands, @ attaches a text file, F1 tells the keys.
"""


class Recent(Clickable):
    """A conversation to go on with."""

    def __init__(self, summary: SessionSummary) -> None:
        title = clean_line(summary.title, 100) or "(no title)"
        super().__init__(f"  {title} · {when(summary.updated)}", classes="recent")
        self.session_id = summary.id


class Welcome(Vertical):
    """The last conversations can be clicked; Ctrl+B lists all."""

    class Opened(Message):
        def __init__(self, session_id: int) -> None:
            self.session_id = session_id
            super().__init__()

    DEFAULT_CSS = "Welcome { height: auto; }"

    def __init__(self, recent: Sequence[SessionSummary]) -> None:
        super().__init__()
        self._recent = recent

    def compose(self) -> ComposeResult:
        yield Static(_WORDS, markup=False, classes="empty")
        if self._recent:
            yield Static("Go on with (Ctrl+B lists all):", markup=False, classes="empty")
            for summary in self._recent:
                yield Recent(summary)

    def on_clickable_pressed(self, event: Clickable.Pressed) -> None:
        event.stop()
        assert isinstance(event.clicked, Recent)
        self.post_message(self.Opened(event.clicked.session_id))
