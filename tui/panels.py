"""The model picker, the settings panel and the token inspector, opened from the conversation.

They are imported when they are opened, since they, NumPy among them, take as long as all the rest of the start.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgllm.errors import UsageError, WorkerError
from wgllm.sessions_types import Message, MessageState
from wgllm.tui import attachments
from wgllm.tui.base import kept_sampling, sampling_options
from wgllm.tui.replies import Replies, Reply, known_tokens
from wgllm.tui.text import clean, clean_line, split_attached
from wgllm.tui.tokens import Branch, Token, tokens_of

if TYPE_CHECKING:
    from wgllm.engine import Event
    from wgllm.sampling import SamplingParams
    from wgllm.tui.model import ModelClient, PromptProgress, ReplyEvents, ReplyFailed
    from wgllm.tui.settings import SettingsPanel
    from wgllm.tui.settings_values import Settings

_CANDIDATES = 10
"""How many tokens are shown that might have stood in a place."""


@dataclass
class _Looking:
    """A reply that the model reads once more."""

    message: Message
    before: list[Message]
    """What was said before it."""
    request: int | None = None
    given_up: bool = False
    events: list[Event] = field(default_factory=list)
    done: asyncio.Future[list[Event]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class _GivenUp(Exception):
    """Another reply has begun, or another conversation is open: nobody looks any more."""


class Panels(Replies):
    """Pushes the screens, and does what they come back with."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._looking: _Looking | None = None
        self._seen: tuple[tuple[int, str], list[Event]] = ((0, ""), [])
        """The reply that was looked into last (message, model), and what was seen."""

    async def choose_model(self) -> None:
        # A worker of its own: the screen's keys come through this application.
        self.run_worker(self._choose_model())

    async def _choose_model(self) -> None:
        from wgllm.tui.picker import ModelPicker

        in_use = self.facts.path if self.facts is not None else None
        picker = ModelPicker(
            self.models,
            self.downloads,
            current=self.model_name if self.works else None,
            in_use=None if in_use is None else Path(in_use),
            offline=self.start.offline,
        )
        chosen = await self.ask_screen(picker)
        if chosen is not None:
            await self.begin_loading(chosen.name)

    async def show_settings(self) -> None:
        from wgllm.tui.settings import SettingsPanel
        from wgllm.tui.settings_values import Settings

        client = await self.model_ready()
        defaults = await client.sampling_params({})
        now = await client.sampling_params(self.sampling)
        shown = Settings(
            now, self.system_prompt, self.settings.get("max_tokens"), self.load_changes.get("ctx_size")
        )
        panel = SettingsPanel(shown, defaults=Settings(defaults), presets=self.store.presets)
        self.run_worker(self._take_settings(panel, shown, defaults))

    async def _take_settings(self, panel: SettingsPanel, before: Settings, defaults: SamplingParams) -> None:
        made = await self.ask_screen(panel)
        if made is None:
            return
        changed = {
            name: value
            for name in defaults.__dataclass_fields__
            if (value := getattr(made.sampling, name)) != getattr(defaults, name)
        }
        self.settings["sampling"] = kept_sampling(changed)
        self.settings["max_tokens"] = made.max_tokens
        self.system_prompt = made.system_prompt
        self.keep_settings()
        if made.ctx_size != before.ctx_size:
            self.start_loading(ctx_size=made.ctx_size)
        else:
            self.measure()
        self.tell("Settings hold from the next reply on")

    # The token inspector

    async def inspect(self, message: Message) -> None:
        """Shows what else a reply might have said. The model reads it for that once more, which Esc ends.

        A new reply or another conversation ends it without a word.
        """
        if self.reply is not None:
            raise UsageError("a reply is being generated; Esc stops it")
        if self._looking is not None:
            raise UsageError("the model reads a reply already; Esc ends that")
        if all(m.id != message.id for m in self.path):
            raise UsageError("that reply is not shown any more")
        before = self.path[: [m.id for m in self.path].index(message.id)]
        looking = self._looking = _Looking(message, before)
        try:
            tokens = await self._look(looking)
        except _GivenUp:
            return
        finally:
            if self._looking is looking:
                self._looking = None
                if not self.gone and not self.loading and looking.request is not None:
                    self.status.show(doing="")
        self.run_worker(self._inspect(message, tokens))

    async def _look(self, looking: _Looking) -> list[Token]:
        message, model = looking.message, self.model_name
        client = await self.model_ready()
        self._check_looking(looking)
        if self._seen[0] != (message.id, model):
            self._seen = (message.id, model), await self._read_again(client, looking)
        events = self._seen[1]
        ids = {e.token_id for e in events if e.token_id is not None}
        ids |= {token for e in events for token, _ in e.top_logprobs}
        texts = dict(zip(ids, await client.token_texts(list(ids)), strict=True))
        self._check_looking(looking)
        return tokens_of(events, lambda token: clean(texts[token]))

    async def _read_again(self, client: ModelClient, looking: _Looking) -> list[Event]:
        """The events of a reply's tokens, as if they were drawn now."""
        from wgllm.engine import Request

        message = looking.message
        prompt = await client.chat_tokens(self.sent_messages(looking.before))
        self._check_looking(looking)
        given = known_tokens(message, self.model_name) or await client.reply_tokens(message.content)
        if not given:
            raise UsageError("this reply has no text")
        if client.facts is None:
            raise WorkerError("the model is not loaded any more; F5 loads it again")
        if len(prompt) + len(given) > client.facts.ctx_size + 1:
            raise UsageError("with what was said before, this reply is longer than the context; /context")
        params = await client.sampling_params(self._sampling_of(message))
        self._check_looking(looking)
        looking.request = client.generate(Request(prompt, given=given, sampling=params, logprobs=_CANDIDATES))
        events = await looking.done
        self._check_looking(looking)
        return events

    def _check_looking(self, looking: _Looking) -> None:
        """After each wait, since anything may have happened meanwhile."""
        if looking.done.done():  # Esc
            looking.done.result()
        if looking.given_up or self.reply is not None or self.gone:
            raise _GivenUp

    def _give_up_looking(self) -> None:
        looking = self._looking
        if looking is None:
            return
        self._looking, looking.given_up = None, True
        if looking.request is not None and self.client is not None:
            self.client.cancel(looking.request)
            if not self.gone and not self.loading:
                self.status.show(doing="")
        if not looking.done.done():
            looking.done.set_result([])

    async def open_session(self, session_id: int | None, message_id: int | None = None) -> None:
        if self.reply is None or self.reply.request is not None:
            self._give_up_looking()
        await super().open_session(session_id, message_id)

    def start_reply(
        self,
        beside: int | None = None,
        prefix: tuple[list[int], str] = ([], ""),
        *,
        after: int | None = None,
    ) -> None:
        self._give_up_looking()
        super().start_reply(beside, prefix, after=after)

    async def _make(self, reply: Reply) -> None:
        try:
            await super()._make(reply)
        except Exception as error:  # a reply that nobody makes would wait for ever
            self._end(reply, MessageState.ERROR, None, {"error": clean_line(str(error), 500)})
            raise

    def _end(
        self, reply: Reply, state: MessageState, reason: str | None, stats: dict[str, Any] | None = None
    ) -> None:
        super()._end(reply, state, reason, stats)
        if self._ask_anew is not None and self.reply is None:
            content, self._ask_anew = self._ask_anew, None
            if not self.gone:
                self.run_worker(self._open_anew(content))

    async def _open_anew(self, content: str) -> None:
        """A new conversation; its prompt holds a question that an earlier one had no room for."""
        await self.open_session(None)
        files, typed = split_attached(content)
        named = {file.name for path in attachments.mentions(typed) if (file := attachments.file_of(path))}
        # A file that no @path of the text names goes along as it is.
        self.prompt_bar.prompt.take(typed if all(f.name in named for f in files) else content)
        self.prompt_bar.prompt.focus()
        self.keep_place()

    def _sampling_of(self, message: Message) -> dict[str, Any]:
        stats = message.stats or {}
        kept, seed = stats.get("sampling"), stats.get("seed")
        options = sampling_options(kept) if isinstance(kept, dict) else self.sampling
        return {**options, "seed": seed} if isinstance(seed, int) else options

    def on_prompt_progress(self, event: PromptProgress) -> None:
        looking = self._looking
        if looking is not None and looking.request == event.request and event.total and not self.gone:
            self.status.show(doing=f"looking into the reply ({event.done / event.total:.0%})")

    def on_reply_events(self, event: ReplyEvents) -> None:
        from wgllm.engine import FinishReason

        looking = self._looking
        if looking is None or looking.request != event.request or looking.done.done():
            return
        looking.events += [one for one in event.events if one.token_id is not None]
        if event.events[-1].finish is FinishReason.CANCELLED:
            looking.done.set_exception(UsageError("looking into the reply was stopped"))
        elif event.events[-1].finish is not None:
            looking.done.set_result(looking.events)

    def on_reply_failed(self, event: ReplyFailed) -> None:
        looking = self._looking
        if looking is not None and looking.request == event.request and not looking.done.done():
            looking.done.set_exception(event.error)

    def stop(self) -> bool:
        if super().stop():
            return True
        if self._looking is None or self.client is None:
            return False
        looking = self._looking
        if looking.request is not None:
            self.client.cancel(looking.request)
        else:
            self._give_up_looking()
            self.tell("looking into the reply was stopped")
        return True

    async def _inspect(self, message: Message, tokens: list[Token]) -> None:
        from wgllm.tui.inspector import TokenInspector

        branch = await self.ask_screen(TokenInspector(tokens))
        if isinstance(branch, Branch):
            ids = [token.token_id for token in tokens[: branch.token_index]]
            await self.branch_from(message, [*ids, branch.token_id])

    async def branch_from(self, message: Message, ids: list[int]) -> None:
        """Makes another reply beside ``message`` that begins with these tokens."""
        if self.reply is not None:
            raise UsageError("a reply is being generated; Esc stops it")
        client = await self.model_ready()
        text = await client.reply_text(ids)
        if self.reply is not None or all(m.id != message.id for m in self.path):
            raise UsageError("another reply or conversation has begun meanwhile; nothing was branched")
        self.start_reply(beside=message.id, prefix=(ids, text))
