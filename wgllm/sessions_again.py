"""Replies that go on otherwise than they began: begun again in their own row, or left by a process that died."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wgllm import sessions_tree as tree
from wgllm.errors import UsageError
from wgllm.sessions_db import opening, store_errors
from wgllm.sessions_text import storable
from wgllm.sessions_types import Message

if TYPE_CHECKING:
    from wgllm.sessions import SessionStore

_EMPTY = """role = 'assistant' AND content = '' AND state = 'stopped'
    AND NOT EXISTS (SELECT 1 FROM messages below WHERE below.parent = messages.id)"""


def is_empty(store: SessionStore, message_id: int) -> bool:
    """Whether it is a reply that was stopped before it had text, and after which nothing was said."""
    with store._database.reading() as connection:
        query = f"SELECT 1 FROM messages WHERE id = ? AND {_EMPTY}"
        return connection.execute(query, (message_id,)).fetchone() is not None


def begin_again(store: SessionStore, message_id: int, *, model: str = "", content: str = "") -> Message:
    """``SessionStore.regenerate`` in the row of a reply that ``is_empty``, and shows it. Raises UsageError for others.

    It keeps its place among its siblings.
    """
    now = store._wall()
    with store._database.writing() as connection:
        changed = connection.execute(
            f"""UPDATE messages SET state = 'partial', owner = ?, content = ?, model = ?, created = ?,
            finish_reason = NULL, stats = NULL, token_count = NULL WHERE id = ? AND {_EMPTY}""",
            (store._owner.token, storable(content), storable(model), now, message_id),
        ).rowcount
        if not changed:
            raise UsageError(f"message {message_id} is no reply without text")
        begun = tree.message(connection, message_id)
        tree.show(connection, begun.session_id, message_id)
        tree.touch(connection, begun.session_id, now)
    store._replies.begin(begun)
    return begun


def interrupt_dead(store: SessionStore) -> None:
    """Replies whose process has died since the store was opened become ``INTERRUPTED``."""
    with opening(store.file):
        with store_errors(store.file):
            running = store._owner.running()
        store._interrupt(f"owner NOT IN ({', '.join('?' * len(running))})", running)
