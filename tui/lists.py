"""A list with a filter above it that keeps the focus: what pickers are made of."""

from __future__ import annotations

from textual.message import Message
from textual.widgets import Button, Input, OptionList


class FilterInput(Input):
    """Delete, where there is nothing to its right, means what the list has highlighted."""

    class Delete(Message):
        pass

    def action_delete_right(self) -> None:
        if self.cursor_position == len(self.value) and self.selection.is_empty:
            self.post_message(self.Delete())
        else:
            super().action_delete_right()


class Models(OptionList, can_focus=False):
    """The list, moved in from the filter, where the keys stay."""


class ClickButton(Button, can_focus=False):
    """For the mouse: its key works wherever the focus is, and the focus stays there."""
