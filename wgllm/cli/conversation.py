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
            self.session.messages.warn(f"the context is full: the first {dropped} turns were dropped")
        return tokens

    def text(self) -> str:
        return "\n\n".join(f"## {m['role']}\n\n{m['content']}" for m in self.messages()) + "\n"


class TextConversation(Conversation):
    """One text that both write; what was said first is not followed by a line's end, as files and -p give it."""

    def ask(self, text: str) -> None:
        super().ask(text + "\n" if self.turns else text)

    def tokens(self) -> list[int]:
        ids: list[int] = []
        for i, turn in enumerate(self.turns):
            ids += self.session.text_tokens(turn.asked, add_special=i == 0)
            ids += turn.ids
        if len(ids) > self.session.llm.ctx_size and self.session.options.context_shift:
            ids = ids[-(self.session.llm.ctx_size * 3 // 4) :]
            self.session.messages.warn("the context is full: the beginning was dropped")
        return ids

    def text(self) -> str:
        return "".join(turn.asked + (turn.replied or "") for turn in self.turns)


def start_conversation(session: Session, system: str | None) -> Conversation:
    if session.uses_template:
        return ChatConversation(session, system)
    if system is not None:
        raise UsageError("a system prompt needs a chat template; put it into the prompt instead")
    return TextConversation(session)
