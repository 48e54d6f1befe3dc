"""Questions: a choice, a line or a text, and help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from wgllm.tui import commands


class Choice(ModalScreen[str | None]):
    """One of several answers, or None by Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, title: str, text: str, answers: Sequence[tuple[str, str]]) -> None:
        """``answers``: what is returned, and what is shown of it."""
        super().__init__()
        self._title, self._text, self._answers = title, text, answers

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, markup=False, classes="dialog-title")
            with VerticalScroll(classes="dialog-text", can_focus=False):
                yield Static(self._text, markup=False)
            yield OptionList(*(Option(shown, id=key) for key, shown in self._answers), markup=False)
            yield Static("Enter chooses · Esc goes back", markup=False, classes="dialog-keys")

    def on_mount(self) -> None:
        answers = self.query_one(OptionList)
        answers.focus()
        answers.highlighted = 0

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(event.option_id)


class AskLine(ModalScreen[str | None]):
    """A line of text, or None by Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        self._title, self._value = title, value

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, markup=False, classes="dialog-title")
            yield Input(self._value)
            yield Static("Enter keeps it · Esc goes back", markup=False, classes="dialog-keys")

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value)


class AskText(ModalScreen[str | None]):
    """A text of several lines, or None by Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s,f2", "keep", "Keep", priority=True),
        Binding("escape", "dismiss(None)", "Cancel", priority=True),
    ]

    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        self._title, self._value = title, value

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, markup=False, classes="dialog-title")
            yield TextArea(self._value, soft_wrap=True)
            yield Static("Ctrl+S keeps it · Esc goes back", markup=False, classes="dialog-keys")

    def action_keep(self) -> None:
        self.dismiss(self.query_one(TextArea).text)


_KEYS = (
    ("Enter", "send"),
    ("Shift+Enter, Ctrl+J", "break the line"),
    ("Esc", "stop the reply; what there is of it is kept"),
    ("Up, Down", "in an empty prompt: what you sent before"),
    ("PageUp, PageDown", "scroll; Ctrl+End goes back to the end"),
    ("Ctrl+Up, Ctrl+Down", "from message to message; Tab goes to code as well"),
    ("Ctrl+B", "conversations: list and search"),
    ("Ctrl+P", "all commands"),
    ("F5, F6, F7", "when a model failed: load it again, with NumPy, the one before"),
    ("Ctrl+C", "copy what is selected, else stop, else leave"),
)
_MESSAGE_KEYS = (
    ("c", "copy it; on code Enter does as well"),
    ("r", "regenerate: another reply beside this one"),
    ("e", "edit a message of yours and ask again"),
    ("Left, Right", "the branch before, the one after"),
    ("t", "unfold reasoning and attached files"),
    ("i", "how probable each token of a reply was"),
)
_TYPED = (
    ("@path", 'attaches a text file; @"a path" one with blanks'),
    ("//text", "sends a message that begins with /"),
)


def command_rows() -> list[tuple[str, str]]:
    return [
        (
            f"/{command.name} {command.argument}".strip(),
            command.help + (f" ({command.key})" if command.key else ""),
        )
        for command in commands.TABLE
    ]


class HelpTable(Grid):
    """Two columns: what one types or presses, and what it does."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._rows = rows

    def compose(self) -> ComposeResult:
        for name, does in self._rows:
            yield Static(name, markup=False, classes="help-name")
            yield Static(does, markup=False)


class Help(ModalScreen[None]):
    """Keys and commands."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,f1", "dismiss(None)", "Close")]
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-narrow"), (60, "-normal")]  # noqa: RUF012

    def compose(self) -> ComposeResult:
        sections = (
            ("Keys", _KEYS), ("On a message (Ctrl+Up goes there)", _MESSAGE_KEYS), ("Typed", _TYPED),
            ("Commands", command_rows()),
        )  # fmt: skip
        with Vertical(classes="dialog large"):
            yield Static("Help", markup=False, classes="dialog-title")
            with VerticalScroll(id="help-text"):
                for title, rows in sections:
                    yield Static(title, markup=False, classes="help-title")
                    yield HelpTable(rows)
            yield Static("Esc goes back · Up, Down scroll", markup=False, classes="dialog-keys")
