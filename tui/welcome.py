"""What an empty conversation shows: how to begin, and what one could go on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Center, Horizontal, Vertical
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from wgllm.sessions_types import SessionSummary
from wgllm.tui.text import clean_line, when

_HINTS = (
    ("/", "commands"),
    ("@", "attaches a text file"),
    ("F1", "tells all keys"),
    ("Ctrl+B", "lists and searches conversations"),
)


class Recent(Horizontal, can_focus=True):
    """A conversation to go on with: a click or Enter opens it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "Open")]

    def __init__(self, summary: SessionSummary) -> None:
        super().__init__(classes="recent")
        self._summary = summary

    def compose(self) -> ComposeResult:
        yield Static(
            clean_line(self._summary.title, 100) or "(no title)", markup=False, classes="recent-title"
        )
        yield Static(when(self._summary.updated), markup=False, classes="recent-when")

    def on_click(self, event: Click) -> None:
        event.stop()
        self.action_open()

    def action_open(self) -> None:
        self.post_message(Welcome.Opened(self._summary.id))


class Welcome(Center):
    """In the middle of the screen; the last conversations can be opened, Ctrl+B lists all."""

    class Opened(Message):
        def __init__(self, session_id: int) -> None:
            self.session_id = session_id
            super().__init__()

    def __init__(self, recent: Sequence[SessionSummary]) -> None:
        super().__init__()
        self._recent = recent

    def compose(self) -> ComposeResult:
        with Vertical(id="welcome"):
            yield Static("Type below and press Enter.", markup=False, classes="welcome-title")
            for key, does in _HINTS:
                with Horizontal(classes="hint"):
                    yield Static(key, markup=False, classes="hint-key")
                    yield Static(does, markup=False, classes="hint-does")
            if self._recent:
                yield Static("Go on with", markup=False, classes="welcome-title")
                for summary in self._recent:
                    yield Recent(summary)
