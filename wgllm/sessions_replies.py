"""Replies that are being generated: their latest texts, and when these are written."""

from __future__ import annotations

from collections.abc import Callable

from wgllm.errors import UsageError
from wgllm.sessions_db import Database
from wgllm.sessions_text import storable
from wgllm.sessions_types import Message

PARTIAL_SECONDS = 0.8
"""How often the text of a reply is saved: with a timer of 0.1 s, less than a second is lost."""


class Reply:
    """One of them. ``text`` is the latest."""

    def __init__(self, text: str, tried: float) -> None:
        self.text = text
        self.saved = text
        """The very object that was written last."""
        self.tried = tried
        """When it was last written, or that was last tried; seconds of the monotonic clock."""


class Replies:
    """The replies of one store, by the message's id. Its methods take the database's lock."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._replies: dict[int, Reply] = {}

    def __len__(self) -> int:
        return len(self._replies)

    def begin(self, message: Message) -> None:
        with self._database.lock:
            self._replies[message.id] = Reply(message.content, self._monotonic())

    def get(self, message_id: int) -> Reply:
        """Raises UsageError for one that was not begun here, or has ended."""
        reply = self._replies.get(message_id)
        if reply is None:
            raise UsageError(f"message {message_id} is no reply that is being generated here")
        return reply

    def end(self, message_id: int) -> None:
        del self._replies[message_id]

    def latest(self, message: Message) -> Message:
        """The message with its latest text."""
        reply = self._replies.get(message.id)
        return message if reply is None else message._replace(content=storable(reply.text))

    def flush(self, age: float, patience: float | None = None) -> None:
        """Writes the texts that are new, of replies last written at least ``age`` seconds ago.

        ``patience`` is as in ``Database.writing``.
        """
        with self._database.lock:
            now = self._monotonic()
            due = {
                message_id: reply
                for message_id, reply in self._replies.items()
                if reply.text is not reply.saved and now - reply.tried >= age
            }
            if not due:
                return
            for reply in due.values():
                reply.tried = now  # so that a full disk is not tried again with the next token
            with self._database.writing(patience) as connection:
                connection.executemany(
                    "UPDATE messages SET content = ? WHERE id = ?",
                    [(storable(reply.text), message_id) for message_id, reply in due.items()],
                )
            for reply in due.values():
                reply.saved = reply.text
