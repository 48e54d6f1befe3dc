"""The model picker, the settings panel and the token inspector, opened from the conversation."""

from __future__ import annotations

from wgllm.engine import Event
from wgllm.errors import UsageError
from wgllm.sampling import SamplingParams
from wgllm.sessions_types import Message
from wgllm.tui.base import kept_sampling
from wgllm.tui.inspector import Branch, Token, TokenInspector, tokens_of
from wgllm.tui.picker import ModelPicker
from wgllm.tui.replies import LOGPROBS, Replies
from wgllm.tui.settings import SettingsPanel
from wgllm.tui.settings_values import Settings
from wgllm.tui.text import clean


class Panels(Replies):
    """Pushes the screens, and does what they come back with."""

    async def choose_model(self) -> None:
        # A worker of its own: the screen's keys come through this application.
        self.run_worker(self._choose_model())

    async def _choose_model(self) -> None:
        chosen = await self.ask_screen(ModelPicker(current=self.model_name))
        if chosen is not None:
            await self.use_model(chosen.name)

    async def use_model(self, name: str) -> None:
        """Loads another model, offering to fetch it."""
        self.stop()
        self.load_changes.pop("ctx_size", None)
        await self.begin_loading(name)

    async def show_settings(self) -> None:
        client = await self.model_ready()
        assert client.facts is not None
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
            for name in SamplingParams.__dataclass_fields__
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
        """Shows the tokens of a reply, if its probabilities were recorded; else records those of the next ones."""
        events = self.recorded.get(message.id)
        if not events:
            self.settings["logprobs"] = LOGPROBS
            self.keep_settings()
            raise UsageError("probabilities are recorded from the next reply on; r makes this one anew")
        client = await self.model_ready()
        ids = {e.token_id for e in events if e.token_id is not None}
        ids |= {token for e in events for token, _ in e.top_logprobs}
        texts = dict(zip(ids, await client.token_texts(list(ids)), strict=True))
        tokens = tokens_of(events, lambda token: clean(texts[token]))
        self.run_worker(self._inspect(message, events, tokens))

    async def _inspect(self, message: Message, events: list[Event], tokens: list[Token]) -> None:
        branch = await self.ask_screen(TokenInspector(tokens))
        if isinstance(branch, Branch):
            ids = [e.token_id for e in events if e.token_id is not None][: branch.token_index]
            await self.branch_from(message, [*ids, branch.token_id], events[: branch.token_index])

    async def branch_from(self, message: Message, ids: list[int], before: list[Event]) -> None:
        """Makes another reply beside ``message`` that begins with these tokens."""
        if self.reply is not None:
            raise UsageError("a reply is being generated; Esc stops it")
        client = await self.model_ready()
        text = await client.reply_text(ids)
        self.start_reply(beside=message.id, prefix=(ids, text), recorded=before)
