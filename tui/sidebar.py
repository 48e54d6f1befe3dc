"""The conversations that are kept: a list with full-text search."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from wgllm.sessions_types import SearchHit, SessionSummary
from wgllm.tui.text import clean_line, when

MOST = 500
"""Conversations in the list; search finds the others."""


class ChatList(OptionList):
    """Titles. Enter opens."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "ask('rename')", "Rename"),
        Binding("d,delete", "ask('delete')", "Delete"),
        Binding("u", "ask('undo')", "Undo delete"),
        Binding("x", "ask('export')", "Export"),
        Binding("slash", "search", "Search"),
        Binding("escape", "leave", "Back", show=False),
    ]

    def action_ask(self, what: str) -> None:
        sidebar = self.parent
        assert isinstance(sidebar, Sidebar)
        session_id = sidebar.highlighted_session
        if session_id is not None or what == "undo":
            self.post_message(Sidebar.Asked(what, session_id or 0))

    def action_search(self) -> None:
        self.screen.query_one("#search", Input).focus()

    def action_leave(self) -> None:
        self.post_message(Sidebar.Asked("leave", 0))


class Sidebar(Vertical):
    """The list, or while words stand in the search field what was found."""

    class Asked(Message):
        """``open`` (perhaps at a message), ``rename``, ``delete``, ``undo``, ``export`` or ``leave``."""

        def __init__(self, what: str, session_id: int, message_id: int | None = None) -> None:
            self.what, self.session_id, self.message_id = what, session_id, message_id
            super().__init__()

    def __init__(
        self,
        sessions: Callable[[], list[SessionSummary]],
        search: Callable[[str], list[SearchHit]],
    ) -> None:
        super().__init__(id="sidebar")
        self._sessions = sessions
        self._search = search
        self._targets: list[tuple[int, int | None]] = []
        self.current: int | None = None
        """The conversation that is open."""

    def compose(self) -> ComposeResult:
        yield Input(placeholder="search all conversations", id="search", compact=True)
        yield ChatList(id="chats", markup=False)
        yield Static("", markup=False, id="chats-note")

    def on_mount(self) -> None:
        self.reload()

    @property
    def highlighted_session(self) -> int | None:
        index = self.query_one(ChatList).highlighted
        return None if index is None or index >= len(self._targets) else self._targets[index][0]

    def reload(self) -> None:
        """Reads the list anew, the highlighted place stays."""
        if not self.is_mounted or not self.display:
            return
        words = self.query_one("#search", Input).value
        chats = self.query_one(ChatList)
        highlighted = chats.highlighted
        if words.strip():
            options = self._hits(words)
            nothing = "nothing was found"
        else:
            options = self._list()
            nothing = "no conversations yet"
        chats.clear_options()
        chats.add_options(options)
        if options:
            chats.highlighted = min(highlighted or 0, len(options) - 1)
        note = self.query_one("#chats-note", Static)
        note.display = not options
        note.update(nothing)

    def _list(self) -> list[Option]:
        summaries = self._sessions()[:MOST]
        self._targets = [(s.id, None) for s in summaries]
        return [
            Option(
                Content.assemble(
                    ("● " if s.id == self.current else "  "),
                    (clean_line(s.title, 100) or "(no title)", "bold"),
                    "\n  ",
                    f"{when(s.updated)} · {s.n_messages} · {s.snippet}",
                )
            )
            for s in summaries
        ]

    def _hits(self, words: str) -> list[Option]:
        hits = self._search(words)
        self._targets = [(h.session_id, h.message_id) for h in hits]
        options = []
        for hit in hits:
            snippet = Content(hit.snippet)
            for start, end in hit.highlights:
                snippet = snippet.stylize("bold underline", start, end)
            title = clean_line(hit.title, 100) or "(no title)"
            options.append(Option(Content.assemble("  ", (title, "bold"), "\n  ", snippet)))
        return options

    @on(Input.Changed, "#search")
    def _searched(self, event: Input.Changed) -> None:
        event.stop()
        self.query_one(ChatList).highlighted = None
        self.reload()

    @on(Input.Submitted, "#search")
    def _enter(self, event: Input.Submitted) -> None:
        event.stop()
        self.query_one(ChatList).focus()

    @on(OptionList.OptionSelected, "#chats")
    def _open(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        session_id, message_id = self._targets[event.option_index]
        self.post_message(self.Asked("open", session_id, message_id))

    def key_down(self) -> None:
        if self.query_one("#search", Input).has_focus:
            self.query_one(ChatList).focus()

    def key_escape(self) -> None:
        field = self.query_one("#search", Input)
        if field.has_focus and field.value:
            field.value = ""
        else:
            self.post_message(self.Asked("leave", 0))
