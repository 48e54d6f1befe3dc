"""What went wrong with the model's process, above the prompt, with what can be done."""

from __future__ import annotations

import asyncio
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
        self._choices: Sequence[tuple[str, str]] = ()
        self._making = asyncio.Lock()

    def compose(self) -> ComposeResult:
        yield Static("", markup=False, id="banner-text")
        yield Horizontal(id="banner-buttons")

    @property
    def shown(self) -> bool:
        return self.has_class("-shown")

    async def show(self, text: str, choices: Sequence[tuple[str, str]]) -> None:
        """``choices``: what is told back, and what the button says. Of two calls the later one holds."""
        self.text, self._choices = text, choices
        async with self._making:
            if self._choices is not choices:
                return  # something else is to be shown meanwhile, or nothing
            row = self.query_one("#banner-buttons", Horizontal)
            await row.remove_children()
            await row.mount_all(Button(label, name=what, compact=True) for what, label in choices)
            if self._choices is not choices:
                return
            self.query_one("#banner-text", Static).update(text)
            self.add_class("-shown")
            self.app.refresh_bindings()

    def hide(self) -> None:
        self.text, self._choices = "", ()
        if not self.shown:
            return  # making the footer anew costs more than it seems
        self.remove_class("-shown")
        self.app.refresh_bindings()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Chosen(event.button.name or ""))
