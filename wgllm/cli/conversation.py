"""A conversation's turns as the tokens that the model reads: by its chat template, or as one growing text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from wgllm.cli.session import Session
from wgllm.errors import UsageError


@dataclass
class Turn:
    """What was asked and answered. ``ids`` are the tokens of a reply that is there."""

    asked: str
    replied: str | None = None
    ids: list[int] = field(default_factory=list)


class Conversation(ABC):
    def __init__(self, session: Session) -> None:
        self.session = session
        self.turns: list[Turn] = []

    def ask(self, text: str) -> None:
        self.turns.append(Turn(text))

    def answer(self, text: str, ids: list[int]) -> None:
        self.turns[-1].replied, self.turns[-1].ids = text, ids

    @abstractmethod
    def tokens(self) -> list[int]:
        """The prompt for the reply to the last turn."""

    @abstractmethod
    def text(self) -> str:
        """All of it, to be saved."""


class ChatConversation(Conversation):
    """Messages by the chat template."""

    def __init__(self, session: Session, system: str | None) -> None:
        super().__init__(session)
        self.system = system

    def messages(self) -> list[dict[str, Any]]:
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            found.append({"role": "user", "content": turn.asked})
            if turn.replied is not None:
                found.append({"role": "assistant", "content": turn.replied})
        return found

    def tokens(self) -> list[int]:
        tokens = self.session.chat_tokens(self.messages())
        room, dropped = self.session.llm.ctx_size, 0
        if len(tokens) > room and self.session.options.context_shift:
            # Leave a quarter for the reply.
            while len(tokens) > room * 3 // 4 and len(self.turns) > 1:
                del self.turns[0]
                dropped += 1
                tokens = self.session.chat_tokens(self.messages())
            if dropped:
                turns = "turn was" if dropped == 1 else f"{dropped} turns were"
                self.session.messages.warn(f"the context is full: the first {turns} dropped")
        return tokens

    def text(self) -> str:
        return "\n\n".join(f"## {m['role']}\n\n{m['content']}" for m in self.messages()) + "\n"


class TextConversation(Conversation):
    """One text that both write; what was said first is not followed by a line's end, as files and -p give it."""

    def ask(self, text: str) -> None:
        super().ask(text + "\n" if self.turns else text)

    def tokens(self) -> list[int]:
        session = self.session
        asked = [session.text_tokens(turn.asked, add_special=i == 0) for i, turn in enumerate(self.turns)]
        ids = [i for own, turn in zip(asked, self.turns, strict=True) for i in (*own, *turn.ids)]
        if len(ids) > session.llm.ctx_size and session.options.context_shift and len(asked) > 1:
            return self._shifted(ids, len(asked[0]), len(asked[-1]))
        return ids

    def _shifted(self, ids: list[int], first: int, last: int) -> list[int]:
        """The beginning that is to be kept and as much of the end as leaves room for a reply.

        All of ``ids``, which is too much, where what was said last would not be whole.
        """
        room, keep = self.session.llm.ctx_size, self.session.options.keep
        keep = min(keep, first) if keep >= 0 else first
        if ids[0] == self.session.llm.tokenizer.bos_id:
            keep = max(keep, 1)
        rest = max((room - keep) * 3 // 4, last)
        if keep + rest > room:
            return ids
        self.session.messages.warn("the context is full: the older part was dropped")
        return ids[:keep] + ids[-rest:]

    def text(self) -> str:
        return "".join(turn.asked + (turn.replied or "") for turn in self.turns)


def start_conversation(session: Session, system: str | None) -> Conversation:
    if session.uses_template:
        return ChatConversation(session, system)
    if system is not None:
        raise UsageError("a system prompt needs a chat template; put it into the prompt instead")
    return TextConversation(session)
