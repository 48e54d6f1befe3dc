"""How much of the context is used, and what is left out when it is full: what the user chooses, nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from textual.screen import Screen

from wgllm.errors import WgllmError
from wgllm.sessions_types import Message
from wgllm.tui.dialogs import Choice
from wgllm.tui.fetching import Fetching
from wgllm.tui.status import WARN_AT
from wgllm.tui.text import clean_line, count, split_attached

if TYPE_CHECKING:
    from wgllm.tui.model import ModelClient

T = TypeVar("T")

_LEAST_ROOM = 64
"""Tokens of the context that a reply should find free."""


class Context(Fetching):
    """Counts, warns and asks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._measuring: asyncio.Task[None] | None = None
        self._ask_anew: str | None = None
        """The question that a new conversation begins with, once the reply to it has ended here."""

    async def ask_screen(self, screen: Screen[T]) -> T | None:
        """Shows a screen and waits for what it was left with, in any task."""
        answered: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self.push_screen(screen, answered.set_result)
        return await answered

    def measure(self) -> None:
        """Counts in the background what the branch takes of the context."""
        if self._measuring is not None:
            self._measuring.cancel()
        if self.facts is not None and self.streaming is None:
            self._measuring = self.begin(self._measure())

    async def _measure(self) -> None:
        assert self.client is not None
        messages = self.sent_messages()
        used = 0
        if self.path and messages:
            try:
                used = len(await self.client.chat_tokens(messages))
            except WgllmError:
                return  # sending tells it
        if self.streaming is None and self.facts is not None and not self.gone:
            self.status.show(used=used, size=self.facts.ctx_size)

    def _warn_if_full(self) -> None:
        figures = self.status.figures
        if figures.share >= WARN_AT and not self._warned_full:
            self._warned_full = True
            self.notify(
                f"The context is {figures.share:.0%} full. /context shows what can be left out.",
                severity="warning",
                timeout=10,
            )
        elif figures.share < WARN_AT:
            self._warned_full = False

    async def fitting(self, client: ModelClient, path: list[Message], tokens: list[int]) -> bool:
        """Whether the prompt leaves room for a reply; if not the user is asked. False: it is not to be sent."""
        assert client.facts is not None
        size = client.facts.ctx_size
        needed = len(tokens) + min(_LEAST_ROOM, size // 8)
        return needed <= size or await self.choose_context(path, needed=needed)

    async def choose_context(self, path: list[Message], needed: int | None = None) -> bool:
        """Asks what the model shall see; False when nothing was chosen."""
        client = await self.model_ready()
        facts = client.facts
        assert facts is not None
        used = needed if needed is not None else self.status.figures.used
        begin = self.sent_from
        sent = path[next((i for i, m in enumerate(path) if m.id == begin), 0) :]
        questions = [m for m in sent if m.role == "user"][1:]
        answers: list[tuple[str, str]] = []
        for share in (0.75, 0.5):
            found = await self._first_kept(path, questions, int(facts.ctx_size * share))
            if found is not None:
                left_out = len(sent) - len(path) + path.index(found)
                title = clean_line(split_attached(found.content)[1], 40)
                answers.append(
                    (
                        f"from {found.id}",
                        f"Leave out the oldest {count(left_out, 'message')}: begin at “{title}”",
                    )
                )
        answers = list(dict(answers).items())
        if begin is not None:
            answers.append(("all", "Send all messages again"))
        wanted = max(2 * facts.ctx_size, needed or 0)
        larger = min(facts.n_ctx_train, 1 << (wanted - 1).bit_length())
        if larger > facts.ctx_size and larger >= (needed or 0):
            answers.append((f"grow {larger}", f"Load the model with a context of {larger:,} tokens"))
        answers.append(("new", "Begin a new conversation; this one is kept"))
        answers.append(("no", "Leave it as it is"))
        if needed is None:
            text = f"{used:,} of {facts.ctx_size:,} tokens are used. Nothing is left out unless you choose it here."
        else:
            text = f"This needs {used:,} tokens with room for a reply; the context has {facts.ctx_size:,}."
        answer = await self.ask_screen(Choice("The context", text, answers))
        return await self._take_context(answer or "no", waits=needed is not None)

    async def _first_kept(self, path: list[Message], questions: list[Message], most: int) -> Message | None:
        """The first question from which on the branch takes at most so many tokens."""
        assert self.client is not None
        low, high = 0, len(questions)
        while low < high:
            middle = (low + high) // 2
            tokens = await self.client.chat_tokens(self.sent_messages(path, questions[middle].id))
            if len(tokens) <= most:
                high = middle
            else:
                low = middle + 1
        return questions[low] if low < len(questions) else None

    async def _take_context(self, answer: str, *, waits: bool) -> bool:
        """``waits``: a question does, so that what is chosen is chosen for it."""
        what, _, value = answer.partition(" ")
        if what in ("from", "all"):
            self.settings.pop("sent_from", None)
            if what == "from":
                self.settings["sent_from"] = int(value)
            self.keep_settings()
            await self.show_path()
            self.measure()
        elif what == "grow":
            self.start_loading(ctx_size=int(value))
        elif what == "new" and waits:
            question = next((m for m in reversed(self.path) if m.role == "user"), None)
            self._ask_anew = "" if question is None else question.content
        elif what == "new":
            await self.open_session(None)
        return what in ("from", "all", "grow")
