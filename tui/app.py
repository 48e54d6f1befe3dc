"""``wgllm chat``: the screen, its keys, and coming back as it was left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Footer

from wgllm.errors import WgllmError
from wgllm.sessions_types import SessionSummary
from wgllm.tui import clipboard, commands
from wgllm.tui.actions import Actions
from wgllm.tui.banner import Banner
from wgllm.tui.colours import readable_variables
from wgllm.tui.conversation import Clickable, Conversation
from wgllm.tui.prompt import Prompt, PromptBar
from wgllm.tui.sidebar import MOST, Sidebar
from wgllm.tui.status import StatusLine
from wgllm.tui.welcome import Welcome

_TICK = 0.1
_SIDEBAR_WIDTH = 110
"""Columns from which on the sidebar is there by itself."""
_NARROW = 60
"""Columns below which it covers the conversation."""
_QUIT_AGAIN = 3.0
_PATIENCE = 2.0
"""Seconds that a handler waits for another program to let the file of conversations go."""


class ChatApp(Actions, inherit_bindings=False):
    """A conversation with a model."""

    TITLE = "wgllm"
    CSS_PATH = "styles.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (_NARROW, "-normal")]  # noqa: RUF012 -- as App declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (20, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        # In the order in which the footer shows them; in a narrow one the last are cut off.
        Binding("escape", "stop", "Stop"),
        Binding("escape", "leave", show=False),
        Binding("f5", "reload", "Reload", priority=True),
        Binding("f6", "numpy", "NumPy", priority=True),
        Binding("f7", "model_before", "Model before", priority=True),
        Binding("f1", "command('help')", "Help"),
        Binding("ctrl+p", "command_palette", "Commands", priority=True),
        Binding("ctrl+b", "sidebar", "Chats", priority=True),
        Binding("ctrl+n", "command('new')", "New", priority=True),
        Binding("ctrl+r", "command('regen')", "Regenerate", priority=True),
        Binding("ctrl+o", "copy_code", "Copy code", priority=True),
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("ctrl+e", "command('edit')", "Edit", priority=True, show=False),
        Binding("ctrl+up", "message(-1)", "Messages", show=False, priority=True),
        Binding("ctrl+down", "message(1)", "Down", show=False, priority=True),
        Binding("ctrl+end", "to_end", "End", show=False, priority=True),
        Binding("ctrl+c", "interrupt", "Copy, stop, quit", show=False, priority=True),
    ]

    _last_interrupt = 0.0
    _own_loop: asyncio.AbstractEventLoop | None = None
    _leave_with: int | None = None

    def compose(self) -> ComposeResult:
        with Horizontal(id="body"):
            yield Sidebar(self._chats, self._search)
            with Vertical(id="main"):
                yield Conversation()
                yield Banner()
                yield PromptBar(self.store.inputs.recent(), self._count_tokens)
        yield StatusLine()
        yield Footer(show_command_palette=False)

    async def on_mount(self) -> None:
        theme = self.store.kept.get("theme", "textual-dark")
        if theme in self.available_themes:
            self.theme = theme
        self.theme_changed_signal.subscribe(self, lambda theme: self.store.kept.put("theme", theme.name))
        self.store.shelf.trouble = self._not_kept
        self.store.patience = _PATIENCE
        self._own_loop = asyncio.get_running_loop()
        if self._leave_with is not None:
            self.exit(self._leave_with)
            return
        self._place_sidebar()
        await self.open_session(self.start.resume)
        for notice in self.store.notices:
            self.tell(notice)
        self.set_interval(_TICK, self.tick)
        self.set_interval(1.0, self.keep_place)
        own = self.session.model if self.session is not None else ""
        # After the first picture, so that one can type at once.
        self.call_after_refresh(self.begin_loading, self.start.model or own or self.start.default_model)

    def _not_kept(self, error: WgllmError) -> None:
        if not self.gone:
            self.tell(f"{error}; what was typed last is not kept yet", error=True)

    def get_css_variables(self) -> dict[str, str]:
        self.theme_variables = readable_variables(super().get_css_variables())
        return self.theme_variables

    def on_resize(self, event: Resize) -> None:
        self._place_sidebar(event.size.width)

    def _place_sidebar(self, width: int | None = None) -> None:
        """There where it was left, or where there is room; never over a narrow screen by itself."""
        if self.sidebar.has_class("-shown") and self.sidebar.has_focus_within:
            return  # at the start its field has the focus while it is not there yet
        width = self.size.width if width is None else width
        wanted = self.store.kept.get("sidebar")
        room = width >= (_SIDEBAR_WIDTH if wanted is None else _NARROW)
        self.sidebar.set_class(room and wanted is not False, "-shown")
        self.refresh_sidebar()

    def leave(self, code: int) -> None:
        """Ends the application; from any thread, at any time."""
        self._leave_with = code
        if self._own_loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._own_loop.call_soon_threadsafe(self.exit, code)

    async def on_unmount(self) -> None:
        await self.close_model()

    async def action_quit(self) -> None:
        self.exit(0)

    def exit(self, *arguments: Any, **options: Any) -> None:
        """Whatever ends it, what is in the prompt is kept, and where one was."""
        with contextlib.suppress(WgllmError):
            self.keep_place()
            if self.opened:
                self._keep("session", self.session.id if self.session is not None else None)
        super().exit(*arguments, **options)

    # Sending

    @on(Prompt.Sent)
    async def _sent(self, event: Prompt.Sent) -> None:
        event.stop()
        text = event.text
        prompt = self.prompt_bar.prompt
        if not text.strip():
            return
        if text.startswith("/") and not text.startswith("//"):
            prompt.take("")
            prompt.remember(text)
            self.store.inputs.add(text)
            self.run_worker(self._run_line(text))
            return
        edited = self.editing is not None
        if await self.ask(text[1:] if text.startswith("//") else text):
            prompt.take(self.draft if edited else "")
            prompt.remember(text)
            self.store.inputs.add(text)
            self.keep_place()

    async def _run_line(self, text: str) -> None:
        if not await self.run_command(text.strip()):
            self.prompt_bar.prompt.take(text)

    @on(Prompt.Escaped)
    def _escaped(self, event: Prompt.Escaped) -> None:
        event.stop()
        self.action_stop()

    async def _count_tokens(self, text: str) -> int | None:
        if self.facts is None or self.client is None:
            return None
        try:
            return await self.client.count_tokens(text)
        except WgllmError:
            return None

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("reload", "numpy"):
            return bool(self.screen_stack) and bool(self.query(Banner)) and self.query_one(Banner).shown
        if action == "model_before":
            return bool(self.screen_stack) and self.has_model_before
        if action == "stop":
            return self.reply is not None
        if action == "command" and parameters == ("regen",) and self.reply is not None:
            return False
        covered = len(self.screen_stack) > 1
        return not (covered and action in ("command", "sidebar", "copy_code", "message", "to_end"))

    def action_stop(self) -> None:
        if not self.stop():
            self.stop_editing()
        self.prompt_bar.prompt.focus()

    def action_leave(self) -> None:
        self.action_stop()

    async def action_interrupt(self) -> None:
        """Copies what is selected, else stops the reply, else leaves when it comes twice."""
        focused = self.focused
        selected = self.screen.get_selected_text() or getattr(focused, "selected_text", "")
        if selected:
            await clipboard.copy(self, selected, "the selection")
        elif not self.stop():
            now = self.now()
            if now - self._last_interrupt < _QUIT_AGAIN:
                self.exit(0)
            else:
                self._last_interrupt = now
                self.tell("Ctrl+C again leaves; everything is kept")

    async def action_command(self, name: str) -> None:
        command = commands.find(name)
        assert command is not None
        self.run_worker(self.run_named(command))

    async def action_copy_code(self) -> None:
        try:
            await self.copy_code()
        except WgllmError as error:
            self.tell(error)

    async def action_message(self, by: int) -> None:
        if not await self.conversation.move_focus(by):
            self.prompt_bar.prompt.focus()

    def action_to_end(self) -> None:
        self.conversation.to_end()
        self.prompt_bar.prompt.focus()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        for command in commands.TABLE:
            if command.name == command.method.removeprefix("command_") and command.argument[:1] in ("", "["):
                title = f"{command.name.capitalize()}{f' ({command.key})' if command.key else ''}"
                yield SystemCommand(title, command.help, lambda c=command: self.run_worker(self.run_named(c)))

    # Sidebar

    def _chats(self) -> list[SessionSummary]:
        try:
            return self.store.sessions(limit=MOST)
        except WgllmError as error:
            self.tell(error, error=True)
            return []

    def _search(self, words: str) -> list[Any]:
        try:
            return self.store.search(words)
        except WgllmError as error:
            self.tell(error, error=True)
            return []

    def show_sidebar(self, words: str = "") -> None:
        sidebar = self.sidebar
        sidebar.add_class("-shown")
        self.store.kept.put("sidebar", True)
        field = sidebar.query_one("#search")
        field.value = words  # type: ignore[attr-defined]
        self.refresh_sidebar()
        (sidebar.query_one("#chats") if words else field).focus()

    def action_sidebar(self) -> None:
        if self.sidebar.has_class("-shown") and self.sidebar.has_focus_within:
            self.hide_sidebar()
        else:
            self.show_sidebar()

    def hide_sidebar(self) -> None:
        self.sidebar.remove_class("-shown")
        self.store.kept.put("sidebar", False)
        self.prompt_bar.prompt.focus()

    @on(Sidebar.Asked)
    async def _of_sidebar(self, event: Sidebar.Asked) -> None:
        event.stop()
        try:
            if event.what == "open":
                if self.screen.has_class("-narrow"):
                    self.hide_sidebar()
                await self.open_session(event.session_id, event.message_id)
            elif event.what == "rename":
                self.ask_title(event.session_id)
            elif event.what == "delete":
                await self.delete_session(event.session_id)
                self.sidebar.query_one("#chats").focus()
            elif event.what == "undo":
                await self.command_undo("")
            elif event.what == "export":
                await self.export_session(event.session_id)
            elif self.screen.has_class("-narrow"):
                self.hide_sidebar()
            else:
                self.prompt_bar.prompt.focus()
        except WgllmError as error:
            self.tell(error, error=True)

    @on(Welcome.Opened)
    async def _of_welcome(self, event: Welcome.Opened) -> None:
        event.stop()
        await self.open_session(event.session_id)

    @on(Clickable.Pressed)
    async def _clicked(self, event: Clickable.Pressed) -> None:
        event.stop()
        if event.clicked.id == "earlier":
            await self.conversation.show_earlier()
        else:
            self.action_to_end()
