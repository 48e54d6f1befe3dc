"""What all parts of the application stand on: the store, the open conversation, what is shown of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textual.app import App
from textual.await_complete import AwaitComplete
from textual.notifications import Notify
from textual.widget import Widget

from wgllm.errors import WgllmError
from wgllm.sessions import SessionStore
from wgllm.sessions_types import Message, Session
from wgllm.tui.conversation import Conversation, Place
from wgllm.tui.prompt import PromptBar
from wgllm.tui.sidebar import Sidebar
from wgllm.tui.status import StatusLine
from wgllm.tui.text import clean_line
from wgllm.tui.welcome import Welcome

if TYPE_CHECKING:
    from wgllm.tui.model import ModelClient, WorkerMaker


@dataclass
class Start:
    """What the command line asked for."""

    model: str | None = None
    """None: the conversation's own, else the default."""
    default_model: str = "smollm2"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of ``wgllm.load``."""
    system_prompt: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    resume: int | None = None
    """The conversation to open; None begins a new one."""
    offline: bool = False


_PLACES = 50
"""Of how many conversations is kept where they were scrolled to, and what was being changed."""


def kept_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the samplers as JSON holds them, which has neither numbers as keys nor infinities."""
    kept: dict[str, Any] = {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()}
    if "logit_bias" in kept:
        kept["logit_bias"] = [[token, str(bias)] for token, bias in options["logit_bias"].items()]
    return kept


def sampling_options(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The samplers' options as the engine takes them, from what ``kept_sampling`` made."""
    options = dict(kept)
    if "logit_bias" in options:
        options["logit_bias"] = {int(token): float(bias) for token, bias in options["logit_bias"]}
    return options


class ChatBase(App[int]):
    """The open conversation and its widgets."""

    def __init__(self, store: SessionStore, start: Start, make_worker: WorkerMaker | None = None) -> None:
        super().__init__()
        self.store = store
        self.start = start
        self._make_worker = make_worker
        self.client: ModelClient | None = None
        self.session: Session | None = None
        """None while nothing was said in a new conversation."""
        self.path: list[Message] = []
        self.settings: dict[str, Any] = self._first_settings()
        """Of the open conversation: ``sampling``, ``max_tokens``, ``sent_from``."""
        self.system_prompt = start.system_prompt or ""
        self.editing: int | None = None
        """The message that what is in the prompt will stand beside."""
        self.opened = False
        """Whether a conversation has been opened: before, the prompt holds nothing to be kept."""
        self._showing = asyncio.Lock()
        """One at a time opens or shows a conversation: background tasks and handlers both do."""
        self._kept: dict[str, Any] = {}
        """What was written last of what ``_keep`` keeps."""

    def _first_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if self.start.sampling:
            settings["sampling"] = kept_sampling(self.start.sampling)
        if self.start.max_tokens is not None:
            settings["max_tokens"] = self.start.max_tokens
        return settings

    @property
    def sampling(self) -> dict[str, Any]:
        """The samplers' options of this conversation, as the engine takes them."""
        return sampling_options(self.settings.get("sampling", {}))

    # Widgets

    @property
    def gone(self) -> bool:
        """Whether the screen is being or has been taken down: what comes then is saved, not shown."""
        return not self.is_running or not self.screen_stack

    @property
    def conversation(self) -> Conversation:
        return self.screen_stack[0].query_one(Conversation)

    @property
    def prompt_bar(self) -> PromptBar:
        return self.screen_stack[0].query_one(PromptBar)

    @property
    def sidebar(self) -> Sidebar:
        return self.screen_stack[0].query_one(Sidebar)

    @property
    def status(self) -> StatusLine:
        return self.screen_stack[0].query_one(StatusLine)

    def tell(self, text: object, *, error: bool = False) -> None:
        """A message that goes away by itself; foreign text in it does no harm."""
        shown = clean_line(str(text), 400)
        self.notify(
            shown, severity="error" if error else "information", markup=False, timeout=8 if error else 4
        )

    # The open conversation

    @property
    def streaming(self) -> int | None:
        """The id of the reply that is being generated."""
        return None

    @property
    def sent_from(self) -> int | None:
        """The first message that the model gets to see; None: it sees all."""
        wanted = self.settings.get("sent_from")
        return wanted if any(m.id == wanted for m in self.path) else None

    def sent_messages(
        self, path: list[Message] | None = None, sent_from: int | None = None
    ) -> list[dict[str, Any]]:
        """What the model is told: the system prompt and the branch, replies with the tokens that they were made of."""
        path = self.path if path is None else path
        sent_from = sent_from or (self.sent_from if path is self.path else self.settings.get("sent_from"))
        begin = next((i for i, m in enumerate(path) if m.id == sent_from), 0)
        told: list[dict[str, Any]] = (
            [{"role": "system", "content": self.system_prompt}] if self.system_prompt.strip() else []
        )
        return told + [
            {"role": m.role, "content": m.content, **self._made_of(m)}
            for m in path[begin:]
            if m.content or m.role != "assistant"
        ]

    def _made_of(self, message: Message) -> dict[str, Any]:
        """``token_ids`` of a reply, where they are known and mean the same to the model."""
        return {}

    async def show_path(self, *, to_end: bool = False) -> None:
        """Reads the branch anew and shows it."""
        async with self._showing:
            await self._show_path(to_end)

    async def _show_path(self, to_end: bool) -> None:
        self.path = self.store.path(self.session.id) if self.session is not None else []
        empty: Widget | None = None if self.path else Welcome(self.store.sessions(limit=5))
        await self.conversation.show(
            self.path, streaming=self.streaming, empty=empty, sent_from=self.sent_from
        )
        now = {m.id: m for m in self.path}
        for view in self.conversation.views():  # a reply may have ended while it got its widget
            if view.streaming and view.message.id != self.streaming:
                view.call_later(view.finish, now[view.message.id])
        if to_end:
            self.conversation.to_end()
        title = self.session.title if self.session is not None else ""
        self.title = clean_line(title, 100) or "wgllm"

    async def open_session(self, session_id: int | None, message_id: int | None = None) -> None:
        """Opens a conversation, or with None begins a new one."""
        async with self._showing:
            await self._open_session(session_id, message_id)

    async def _open_session(self, session_id: int | None, message_id: int | None = None) -> None:
        if self.opened:
            self.keep_place()
        session = None
        if session_id is not None:
            try:
                session = self.store.session(session_id)
                if message_id is not None:
                    self.store.switch(message_id)
            except WgllmError as error:
                self.tell(error, error=True)
                if not self.opened:
                    await self._open_session(None)
                return
        self.opened = False  # until what was kept is there again
        self.editing = None
        self.prompt_bar.say_editing("")
        self.session = session
        self.settings = self._first_settings() if session is None else dict(session.settings)
        first_prompt = self.start.system_prompt or ""
        self.system_prompt = first_prompt if session is None else session.system_prompt
        self.prompt_bar.prompt.take(self.draft)
        place = self._by_session("places").get(str(session_id)) if message_id is None else None
        await self._show_path(to_end=place is None)
        self._keep("session", session_id)
        self.refresh_sidebar()
        self.measure()
        self._edit_again()
        if message_id is not None:
            await self.conversation.reveal(message_id)
        else:
            if place is not None:
                await self.conversation.restore(Place(*place))
            self.prompt_bar.prompt.focus()
        self.opened = True

    def measure(self) -> None:
        """Counts anew how much of the context the branch takes."""

    def refresh_sidebar(self) -> None:
        self.sidebar.current = self.session.id if self.session is not None else None
        self.sidebar.reload()

    def keep_settings(self) -> None:
        """Saves settings and system prompt with the conversation, if there is one yet."""
        if self.session is not None:
            self.session = self.store.update_session(
                self.session.id, settings=self.settings, system_prompt=self.system_prompt
            )

    @property
    def draft(self) -> str:
        """What was typed and not sent, as it was saved last."""
        return str(self.store.kept.get("draft", "")) if self.session is None else self.session.draft

    def keep_place(self) -> None:
        """Saves what stands in the prompt, and what was scrolled to."""
        if self.gone or not self.opened:
            return
        text = self.prompt_bar.prompt.full_text
        try:
            self._keep_by_session("editing", None if self.editing is None else [self.editing, text])
            if self.editing is not None:
                pass  # the draft is what stood there before
            elif self.session is None:
                self._keep("draft", text)
            elif text != self.session.draft:
                self.session = self.store.update_session(self.session.id, draft=text)
            place = self.conversation.place
            self._keep_by_session("places", None if place is None else list(place))
        except WgllmError as error:
            self.tell(error, error=True)

    def _keep(self, key: str, value: Any) -> None:
        """Writes it if it changed."""
        if key not in self._kept or self._kept[key] != value:
            self.store.kept.put(key, value)
            self._kept[key] = value

    def _by_session(self, key: str) -> dict[str, Any]:
        """By conversation: ``places``, what stood at the top of the screen, where that was not the end;
        ``editing``, the message that was being changed and the text for it."""
        if key not in self._kept:
            kept = self.store.kept.get(key)
            self._kept[key] = kept if isinstance(kept, dict) else {}
        return dict(self._kept[key])

    def _keep_by_session(self, key: str, value: Any) -> None:
        """Of the open conversation; None: nothing of it."""
        if self.session is None:
            return
        kept, session = self._by_session(key), str(self.session.id)
        if value is None:
            kept.pop(session, None)
        elif kept.get(session) != value:
            kept.pop(session, None)
            kept[session] = value
        self._keep(key, dict(list(kept.items())[-_PLACES:]))

    def _edit_again(self) -> None:
        """Goes on with changing a message, where that was left."""
        kept = self._by_session("editing").get(str(self.session.id)) if self.session is not None else None
        if kept is None:
            return
        try:
            message = self.store.message(kept[0])
        except WgllmError:
            return
        self.edit(message)
        self.prompt_bar.prompt.take(kept[1])

    def edit(self, message: Message | None = None) -> None:
        """Puts a message of the user's into the prompt."""

    def stop_editing(self) -> None:
        """Gives up changing a message; Up brings back what it was changed to."""
        if self.editing is not None:
            self.editing = None
            prompt = self.prompt_bar.prompt
            self.prompt_bar.say_editing("")
            prompt.put_back(self.draft, prompt.full_text)

    def pop_screen(self) -> AwaitComplete:
        """What was covered by a screen is typed into again, unless the list of conversations was in use."""
        popped = super().pop_screen()
        if len(self.screen_stack) == 1 and not self.sidebar.has_focus_within:
            self.prompt_bar.prompt.focus()
        return popped

    def on_notify(self, event: Notify) -> None:
        """The newest of a severity takes the older one's place."""
        for older in [n for n in self._notifications if n.severity == event.notification.severity]:
            self._unnotify(older, refresh=False)
