"""What went wrong with the model's process, above the prompt, with what can be done."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Button, Static


class Banner(Vertical):
    """A line and buttons; not there while there is nothing to say."""

    class Chosen(Message):
        """A button was pressed."""

        def __init__(self, what: str) -> None:
            self.what = what
            super().__init__()

    def __init__(self) -> None:
        super().__init__(id="banner")
        self.text = ""

    def compose(self) -> ComposeResult:
        yield Static("", markup=False, id="banner-text")
        yield Horizontal(id="banner-buttons")

    @property
    def shown(self) -> bool:
        return self.has_class("-shown")

    async def show(self, text: str, choices: Sequence[tuple[str, str]]) -> None:
        """``choices``: what is told back, and what the button says."""
        self.text = text
        self.query_one("#banner-text", Static).update(text)
        row = self.query_one("#banner-buttons", Horizontal)
        await row.remove_children()
        await row.mount_all(Button(label, name=what, compact=True) for what, label in choices)
        self.add_class("-shown")
        self.app.refresh_bindings()

    def hide(self) -> None:
        if not self.shown:
            return  # making the footer anew costs more than it seems
        self.text = ""
        self.remove_class("-shown")
        self.app.refresh_bindings()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Chosen(event.button.name or ""))
