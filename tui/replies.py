"""Asking and answering: sending, regenerating, editing, stopping, and what to do when the context is full."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from textual import on

from wgllm.errors import UsageError, WgllmError
from wgllm.sessions_again import begin_again, interrupt_dead, is_empty
from wgllm.sessions_types import Message, MessageState
from wgllm.tui import attachments
from wgllm.tui.context import Context
from wgllm.tui.message import MessageView
from wgllm.tui.text import clean_line, count, join_attached, split_attached

if TYPE_CHECKING:
    from wgllm.tui.model import ModelClient


_UNHEARD_SECONDS = 1.0
"""After how long a second Esc ends a model's process that has not heard of the first."""

_OTHERS_SECONDS = 1.0


@dataclass
class Reply:
    """A reply that is being made."""

    message: Message
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """All of it; those of ``prefix`` too."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """The options that it is drawn with."""
    prompt_tokens: int = 0
    request: int | None = None
    first_token: float | None = None
    stopped: bool = False
    prefix: list[int] = field(default_factory=list)
    """Tokens that it begins with, of the reply that it branches from."""

    @property
    def tokens(self) -> int:
        """How many were generated."""
        return len(self.token_ids) - len(self.prefix)

    @property
    def rate(self) -> float:
        if self.first_token is None or self.tokens < 2:
            return 0.0
        return (self.tokens - 1) / max(1e-3, time.monotonic() - self.first_token)


class _Stopped(Exception):
    """The reply was stopped before the model was asked."""


class Replies(Context):
    """One reply at a time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reply: Reply | None = None
        self._saving: asyncio.Task[None] | None = None
        self._stop_asked = 0.0
        self._looked = 0.0
        self._others: asyncio.Task[None] | None = None

    @property
    def streaming(self) -> int | None:
        return self.reply.message.id if self.reply is not None else None

    # Asking

    async def open_session(self, session_id: int | None, message_id: int | None = None) -> None:
        if self.reply is not None and self.reply.request is None:
            self.tell("A question waits for the model; Esc takes it back")
            return
        await super().open_session(session_id, message_id)

    async def ask(self, text: str) -> bool:
        """Sends what was typed, or what an earlier message was changed to. False when it can't be sent now."""
        if self.reply is not None:
            self.tell("A reply is being generated; Esc stops it")
            return False
        where = self._place_of_question()
        try:
            content = await asyncio.to_thread(self._with_files, text)
            if self.reply is not None or self._place_of_question() != where:
                raise UsageError("another reply or conversation has begun meanwhile; Enter sends it there")
            question = self._save_question(content)
        except WgllmError as error:
            self.tell(error, error=True)
            return False
        self.start_reply(after=question.id)
        return True

    def _place_of_question(self) -> tuple[int | None, int | None, int | None]:
        """The conversation, what it would follow, and what it would stand beside."""
        session = self.session.id if self.session is not None else None
        return session, self.path[-1].id if self.path else None, self.editing

    @staticmethod
    def _with_files(text: str) -> str:
        files = [read for path in attachments.mentions(text) if (read := attachments.read(path)) is not None]
        return join_attached(files, text)

    def _save_question(self, content: str) -> Message:
        if (old := self.editing) is not None:
            kept = split_attached(self.store.message(old).content)[0]
            new = {name for name, _ in split_attached(content)[0]}
            files, typed = split_attached(content)
            question = self.store.edit(
                old, join_attached([f for f in kept if f.name not in new] + files, typed)
            )
            self.editing = None
            self.prompt_bar.say_editing("")
        else:
            if self.session is None:
                self.session = self.store.new_session(
                    model=self.model_name, system_prompt=self.system_prompt, settings=self.settings
                )
                self._keep("draft", "")
                self._keep("session", self.session.id)
            leaf = self.path[-1].id if self.path else None
            question = self.store.append(self.session.id, "user", content, after=leaf)
        assert self.session is not None
        self.session = self.store.session(self.session.id)
        return question

    def start_reply(
        self,
        beside: int | None = None,
        prefix: tuple[list[int], str] = ([], ""),
        *,
        after: int | None = None,
    ) -> None:
        """Begins the reply to the message ``after``, or another one beside the reply ``beside``.

        One that was stopped before it had text begins again itself. ``prefix`` is what it begins with: tokens, and
        their text.
        """
        assert self.session is not None
        try:
            if beside is None:
                row = self.store.begin_reply(self.session.id, after=after, model=self.model_name)
            elif is_empty(self.store, beside):
                row = begin_again(self.store, beside, model=self.model_name, content=prefix[1])
            else:
                row = self.store.regenerate(beside, model=self.model_name, content=prefix[1])
        except WgllmError as error:
            self.tell(error, error=True)
            return
        kept = dict(self.settings.get("sampling", {}))
        self.reply = Reply(row, text=prefix[1], prefix=prefix[0], token_ids=list(prefix[0]), sampling=kept)
        self.session = self.store.session(self.session.id)
        self.run_worker(self._make(self.reply))

    async def _make(self, reply: Reply) -> None:
        await self.show_path(to_end=True)
        self.refresh_sidebar()
        self.refresh_bindings()
        view = self.conversation.view(reply.message.id)
        if self.reply is not reply:  # it was stopped meanwhile
            return
        if view is not None and (self.loading or self.facts is None):
            view.say("waiting for the model …")
        try:
            client = await self.model_ready()
            self._check_stopped(reply)
            tokens = await self._fitting_prompt(client, reply)
            params = await client.sampling_params(self.sampling)
            self._check_stopped(reply)
            reply.prompt_tokens = len(tokens)
            from wgllm.engine import Request  # late, since importing it takes as long as all of the start

            request = Request(
                tokens,
                max_tokens=self.settings.get("max_tokens"),
                sampling=params,
                continuation=bool(reply.prefix),
            )
            reply.request = client.generate(request)
            view = self.conversation.view(reply.message.id)  # it may be another one by now
            if view is not None:
                view.say("")
                view.begin()
            self.status.show(doing="reading the prompt …", used=len(tokens))
        except _Stopped:
            self._end(reply, MessageState.STOPPED, "cancelled")
        except WgllmError as error:
            self._end(reply, MessageState.ERROR, None, {"error": clean_line(str(error), 500)})

    async def _fitting_prompt(self, client: ModelClient, reply: Reply) -> list[int]:
        """The prompt's tokens; when they are too many the user says what is left out."""
        while True:
            path = self._before(reply.message)
            tokens = [*await client.chat_tokens(self.sent_messages(path)), *reply.prefix]
            self._check_stopped(reply)
            before = client.facts, self.sent_from
            if not await self.fitting(client, path, tokens):
                raise _Stopped
            client = await self.model_ready()
            if before == (client.facts, self.sent_from):
                return tokens

    def _made_of(self, message: Message) -> dict[str, Any]:
        ended = message.state is MessageState.COMPLETE and message.finish_reason == "stop"
        if message.role != "assistant" or not (ended or message.state is MessageState.STOPPED):
            return {}
        ids = known_tokens(message, self.model_name)
        return {"token_ids": ids} if ids else {}

    def _before(self, message: Message) -> list[Message]:
        """What leads to a message, whichever branch another process shows by now."""
        path: list[Message] = []
        parent = message.parent_id
        while parent is not None:
            path.append(self.store.message(parent))
            parent = path[-1].parent_id
        return path[::-1]

    @staticmethod
    def _check_stopped(reply: Reply) -> None:
        if reply.stopped:
            raise _Stopped

    # Answers of the engine

    def _of(self, request: int) -> Reply | None:
        return self.reply if self.reply is not None and self.reply.request == request else None

    def on_prompt_progress(self, event: Any) -> None:
        reply = self._of(event.request)
        if reply is not None and not self.gone and not reply.tokens and event.total > 1:
            share = event.done / event.total
            self.status.show(doing=f"reading the prompt {event.done:,}/{event.total:,} ({share:.0%})")

    def on_reply_events(self, event: Any) -> None:
        from wgllm.engine import FinishReason

        reply = self._of(event.request)
        if reply is None:
            return
        for one in event.events:
            reply.text += one.text
            if one.token_id is not None:
                reply.token_ids.append(one.token_id)
        if reply.first_token is None and reply.tokens:
            reply.first_token = time.monotonic()
        if not self.gone and (view := self.conversation.view(reply.message.id)) is not None:
            view.feed(reply.text)
        last = event.events[-1]
        if last.finish is None:
            self.store.update_reply(reply.message.id, reply.text)
            return
        stopped = last.finish is FinishReason.CANCELLED
        state = MessageState.STOPPED if stopped else MessageState.COMPLETE
        self._end(reply, state, last.finish.value, None if last.stats is None else asdict(last.stats))
        if last.stats is not None and not self.gone:
            rate = last.stats.decode_rate
            self.status.show(doing=f"{rate:.1f} tok/s" if rate else "")
            if reply.tokens:  # else the prompt was perhaps not read to its end
                self.status.show(used=last.stats.context_used)
                self._warn_if_full()

    def on_reply_failed(self, event: Any) -> None:
        reply = self._of(event.request)
        if reply is not None and reply.stopped:
            self._end(reply, MessageState.STOPPED, "cancelled")
        elif reply is not None:
            self._end(reply, MessageState.ERROR, None, {"error": clean_line(str(event.error), 500)})

    def _end(
        self, reply: Reply, state: MessageState, reason: str | None, stats: dict[str, Any] | None = None
    ) -> None:
        """Saves the reply and shows its end."""
        if self.reply is not reply:
            return
        self.reply = None
        stats = {**(stats or {}), "token_ids": reply.token_ids, "sampling": reply.sampling}
        message = reply.message._replace(content=reply.text, state=state)
        try:
            message = self.store.finish_reply(
                message.id,
                reply.text,
                state=state,
                finish_reason=reason,
                stats=stats,
                token_count=reply.tokens,
            )
        except WgllmError as error:
            self._tell_once(error)
        self.path = [message if m.id == message.id else m for m in self.path]
        if self.gone:
            return
        self.status.show(doing="")
        if (view := self.conversation.view(message.id)) is not None:
            view.call_later(view.finish, message)
        if not reply.tokens or state is MessageState.ERROR:
            self.measure()
        self.refresh_sidebar()
        self.refresh_bindings()

    def _tell_once(self, error: WgllmError) -> None:
        """An error that would come with every token."""
        if getattr(self, "_told", None) != str(error):
            self._told = str(error)
            self.tell(f"{error}; what is shown may not be saved", error=True)

    async def _save(self) -> None:
        """On a thread, since a disk may be slow."""
        try:
            await asyncio.to_thread(self.store.flush_due)
        except WgllmError as error:
            self._tell_once(error)

    def tick(self) -> None:
        """Ten times a second: what waits is saved, the speed told."""
        self._look_at_others()
        if (reply := self.reply) is None or self.gone:
            return
        if self._saving is None or self._saving.done():
            self._saving = self.begin(self._save())
        if reply.tokens:
            doing = f"{reply.rate:.1f} tok/s" if reply.rate else ""
            self.status.show(doing=doing, used=reply.prompt_tokens + reply.tokens)

    def _look_at_others(self) -> None:
        """Once a second: how far a reply is that another window writes."""
        now = time.monotonic()
        if self.gone or now - self._looked < _OTHERS_SECONDS or (self._others and not self._others.done()):
            return
        self._looked = now
        others = [m for m in self.path if m.state is MessageState.PARTIAL and m.id != self.streaming]
        if others:
            self._others = self.begin(self._show_others(others))

    async def _show_others(self, others: list[Message]) -> None:
        try:
            await asyncio.to_thread(interrupt_dead, self.store)
            for old in others:
                async with self._showing:  # else its widget could be made of the old one after this
                    new = await asyncio.to_thread(self.store.message, old.id)
                    if new == old or self.gone:
                        continue
                    self.path = [new if m.id == new.id else m for m in self.path]
                    if (view := self.conversation.view(new.id)) is not None:
                        view.call_later(view.finish, new)
        except WgllmError as error:
            self._tell_once(error)

    def stop(self) -> bool:
        """Ends the reply; False when none is being made."""
        reply = self.reply
        if reply is None:
            return False
        again, reply.stopped = reply.stopped, True
        if reply.request is not None and self.client is not None:
            if again and time.monotonic() - self._stop_asked > _UNHEARD_SECONDS:
                self.tell("The model does not answer: it is started anew")
                self.reload()
                return True
            if not again:
                self._stop_asked = time.monotonic()
            self.client.cancel(reply.request)
            self.status.show(doing="stopping …")
        elif self.facts is None:  # nobody will answer soon
            self._end(reply, MessageState.STOPPED, "cancelled")
        return True

    # Branches

    @on(MessageView.Asked)
    async def _asked(self, event: MessageView.Asked) -> None:
        event.stop()
        message = event.message
        if event.what == "branch":
            await self.switch_branch(message, event.by)
        elif event.what == "regenerate":
            await self.regenerate(message)
        elif event.what == "edit":
            self.edit(message)

    async def switch_branch(self, message: Message, by: int) -> None:
        if self.reply is not None:
            self.tell("A reply is being generated; Esc stops it")
            return
        siblings = self.store.siblings(message.id)
        index = siblings.index(message.id) + by
        if not 0 <= index < len(siblings):
            return
        self.store.switch(siblings[index])
        assert self.session is not None
        self.session = self.store.session(self.session.id)
        await self.show_path()
        if (view := self.conversation.view(siblings[index])) is not None:
            view.focus()
        self.measure()

    async def regenerate(self, message: Message | None = None) -> None:
        """Makes a reply anew: that one, the one to that question, or the last one."""
        if self.reply is not None:
            self.tell("A reply is being generated; Esc stops it")
            return
        if message is None:
            message = self.path[-1] if self.path else None
        if message is None or self.session is None:
            self.tell("There is no reply yet")
            return
        if message.role == "user":
            following = next((m for m in self.path if m.parent_id == message.id), None)
            if following is None:
                self.start_reply(after=message.id)
                return
            message = following
        self.start_reply(beside=message.id)

    def edit(self, message: Message | None = None) -> None:
        """Puts a message of the user's into the prompt; sending makes a new branch."""
        if message is None:
            message = next((m for m in reversed(self.path) if m.role == "user"), None)
        if message is None:
            self.tell("There is no message of yours yet")
            return
        if self.editing is None:
            self.keep_place()
        elif self.editing != message.id:
            self.prompt_bar.prompt.remember(self.prompt_bar.prompt.full_text)
        self.editing = message.id
        files, typed = split_attached(message.content)
        with_files = f" with {count(len(files), 'file')}" if files else ""
        self.prompt_bar.say_editing(
            f"Changing an earlier message{with_files}: Enter asks again beside the old one, Esc leaves it"
        )
        self.prompt_bar.prompt.take(typed)
        self.prompt_bar.prompt.focus()


def known_tokens(message: Message, model: str) -> list[int]:
    """The tokens that a reply was made of, if they are known and this model's."""
    ids = (message.stats or {}).get("token_ids") if message.model == model else None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        return []
    return ids
