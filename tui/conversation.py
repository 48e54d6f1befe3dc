"""The messages of the branch that is shown; the end is followed unless the reader scrolled away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.events import Click
from textual.message import Message as Posted
from textual.widget import Widget
from textual.widgets import Static

from wgllm.sessions_types import Message
from wgllm.tui.message import Divider, MessageView
from wgllm.tui.text import count

WINDOW = 20
"""How many messages are there as widgets at first; earlier ones come when they are asked for."""

_HOLD_SECONDS = 0.6


class Clickable(Static):
    """A line that does something."""

    class Pressed(Posted):
        def __init__(self, clicked: Clickable) -> None:
            self.clicked = clicked
            super().__init__()

    def __init__(self, text: str, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(text, markup=False, id=id, classes=classes)

    def on_click(self, event: Click) -> None:
        event.stop()
        self.post_message(self.Pressed(self))


class Place(NamedTuple):
    """What stands at the top of the screen."""

    message_id: int
    line: int
    """Of the message."""


class Messages(VerticalScroll):
    """The list that scrolls."""

    can_focus = False

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        self._tell()

    def watch_virtual_size(self) -> None:
        self._tell()
        parent = self.parent
        if isinstance(parent, Conversation):
            parent.hold_place()

    def _tell(self) -> None:
        parent = self.parent
        if isinstance(parent, Conversation):
            parent.show_hint()


class Conversation(Vertical):
    """The scrolled list, and the hint that brings its end back."""

    def __init__(self) -> None:
        super().__init__(id="conversation")
        self._path: list[Message] = []
        self._first = 0
        """Of the path, the first message that has a widget."""
        self._sent_from: int | None = None
        self._held: Place | None = None
        """What is to stay at the top until the messages have got their heights."""

    def compose(self) -> ComposeResult:
        yield Messages(id="messages")
        yield Clickable("↓ back to the end (Ctrl+End)", id="to-end")

    def on_mount(self) -> None:
        self.query_one("#to-end").display = False
        self.messages.anchor()

    @property
    def messages(self) -> Messages:
        return self.query_one(Messages)

    @property
    def at_end(self) -> bool:
        messages = self.messages
        return messages.max_scroll_y - messages.scroll_offset.y <= 1

    def show_hint(self) -> None:
        if self.is_mounted:
            away = self.messages.is_anchored and self.messages._anchor_released
            self.query_one("#to-end").display = away and not self.at_end and bool(self._path)

    @property
    def place(self) -> Place | None:
        """Where the reader is; None where the end is followed."""
        if self._held is not None:
            return self._held
        if self.at_end or not self.messages._anchor_released:
            return None
        top = self.messages.scroll_offset.y
        for view in self.views():
            region = view.virtual_region
            if region.bottom > top:
                return Place(view.message.id, top - region.y)
        return None

    async def restore(self, place: Place) -> None:
        """Scrolls to where the reader was."""
        if not await self._make(place.message_id):
            return
        self.messages.release_anchor()
        self._held = place
        self.call_after_refresh(self.hold_place)
        self.set_timer(_HOLD_SECONDS, self._let_go)

    def hold_place(self) -> None:
        """Markdown gets its height bit by bit, which must not move what is read."""
        if self._held is not None and (view := self.view(self._held.message_id)) is not None:
            y = view.virtual_region.y + self._held.line
            self.messages.scroll_to(y=y, animate=False)

    def _let_go(self) -> None:
        self._held = None

    def to_end(self) -> None:
        self._held = None
        self.messages.anchor()
        self.messages.scroll_end(animate=False)
        self.show_hint()

    def views(self) -> list[MessageView]:
        return list(self.messages.query_children(MessageView))

    def view(self, message_id: int) -> MessageView | None:
        return next((v for v in self.views() if v.message.id == message_id), None)

    async def show(
        self,
        path: Sequence[Message],
        *,
        streaming: int | None = None,
        empty: Widget | None = None,
        sent_from: int | None = None,
    ) -> None:
        """Shows a branch; widgets of what it shares with the one before stay.

        ``streaming`` is the reply that goes on, ``sent_from`` the first message that the model gets to see (None: all),
        ``empty`` what is shown where there is no message.
        """
        old, same = self._path, 0
        moved = sent_from != self._sent_from
        # A reply that begins again gets a new widget.
        again = streaming if (view := self.view(streaming or 0)) is not None and not view.streaming else None
        while same < min(len(old), len(path)) and old[same].id == path[same].id != again and not moved:
            same += 1
        if same <= self._first:
            same = 0
        keep = {m.id for m in path[:same]}
        self._path, self._sent_from = list(path), sent_from
        messages = self.messages
        with self.app.batch_update():
            gone = [w for w in messages.children if not (isinstance(w, MessageView) and w.message.id in keep)]
            if same and self._first:
                gone = [w for w in gone if w.id != "earlier"]
            if sent_from in keep:
                gone = [w for w in gone if not isinstance(w, Divider)]
            await messages.remove_children(gone)
            if not same:
                self._first = max(0, len(path) - WINDOW)
            for view, message in zip(self.views(), path[self._first : same], strict=False):
                view.show_facts(message)
            await messages.mount_all(self._widgets(path[max(same, self._first) :], streaming))
            if not same and self._first:
                await messages.mount(self._earlier(), before=0)
            if not path and empty is not None:
                await messages.mount(empty)
        self.call_after_refresh(self.show_hint)

    def _widgets(self, path: Sequence[Message], streaming: int | None = None) -> list[Widget]:
        made: list[Widget] = []
        for message in path:
            if message.id == self._sent_from:
                made.append(Divider())
            made.append(MessageView(message, streaming=message.id == streaming))
        return made

    def _earlier(self) -> Clickable:
        return Clickable(f"↑ {count(self._first, 'earlier message')} (click, or press Up here)", id="earlier")

    async def show_earlier(self) -> None:
        """Makes widgets of the messages before those that have one."""
        if not self._first:
            return
        messages = self.messages
        messages.release_anchor()
        old, self._first = self._first, max(0, self._first - WINDOW)
        before_height = messages.virtual_size.height
        with self.app.batch_update():
            await messages.query("#earlier").remove()
            await messages.mount_all(self._widgets(self._path[self._first : old]), before=0)
            if self._first:
                await messages.mount(self._earlier(), before=0)

        def stay() -> None:
            messages.scroll_to(
                y=messages.scroll_y + messages.virtual_size.height - before_height, animate=False
            )

        self.call_after_refresh(stay)

    async def reveal(self, message_id: int) -> MessageView | None:
        """Scrolls to a message and gives it the focus."""
        view = await self._make(message_id)
        if view is not None:
            self.messages.release_anchor()
            view.focus(scroll_visible=False)
            self.call_after_refresh(self.messages.scroll_to_widget, view, top=True, animate=False)
        return view

    async def _make(self, message_id: int) -> MessageView | None:
        """The message's widget, which may not have been there yet."""
        while self._first and all(m.id != message_id for m in self._path[self._first :]):
            await self.show_earlier()
        return self.view(message_id)

    async def move_focus(self, by: int) -> bool:
        """From message to message; False at the end, where the prompt comes next."""
        views = self.views()
        if not views:
            return False
        focused = next((i for i, v in enumerate(views) if v.has_focus_within), None)
        target = len(views) - 1 if focused is None else focused + by
        if target < 0:
            if self._first:
                first = views[0].message.id
                await self.show_earlier()
                if (view := self.view(first)) is not None:
                    views = self.views()
                    target = views.index(view) - 1
            target = max(target, 0)
        if target >= len(views):
            return False
        views[target].focus()
        return True
