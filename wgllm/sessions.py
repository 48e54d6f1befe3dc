"""The store of conversations: sessions whose messages are trees, saved before and while replies are generated.

``SessionStore.open()`` opens the user's own. Regenerating a reply and editing a message make a new branch beside the
old one. A reply has its row before generation begins; ``update_reply`` is called for every token and writes nothing,
``flush_due`` from a timer writes every PARTIAL_SECONDS what came last.

Threads: every method may be called from any thread; each is one transaction on the store's one connection, behind a
lock. Processes: several may have the same file open. Errors: SessionStoreError when the file cannot be used,
UsageError when a session or message is not there or a value cannot be kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from wgllm import sessions_tree as tree
from wgllm.errors import UsageError
from wgllm.sessions_db import FILE_NAME, Database, data_folder, open_database, opening, store_errors
from wgllm.sessions_owner import Owner
from wgllm.sessions_replies import PARTIAL_SECONDS, Replies
from wgllm.sessions_search import SearchIndex
from wgllm.sessions_shelf import COMFORT_SECONDS, Inputs, Kept, Presets, Shelf
from wgllm.sessions_text import TITLE_LENGTH, json_text, one_line, storable
from wgllm.sessions_types import (
    ROLES,
    Conversation,
    Message,
    MessageState,
    SearchHit,
    Session,
    SessionSummary,
)

KEEP_DELETED_DAYS = 7.0

_NO_FTS5 = "this Python's SQLite has no FTS5: search reads all messages, which takes longer and ranks nothing"
_DAY = 86400.0


class SessionStore:
    """All conversations of one database. Use ``open``; close it, or use it as a context."""

    def __init__(
        self, database: Database, owner: Owner, wall: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._owner = owner
        self._wall = wall
        self._replies = Replies(database, monotonic)
        self._index = SearchIndex(database)
        self.presets = Presets(database)
        self.shelf = Shelf(database, monotonic)
        self.inputs = Inputs(database, self.shelf)
        self.kept = Kept(database, self.shelf)
        self.notices: tuple[str, ...] = database.notices + (() if self.full_text else (_NO_FTS5,))
        """Lines that the user should see: of a damaged file that was set aside, or search that is slow."""

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        keep_deleted_days: float = KEEP_DELETED_DAYS,
    ) -> SessionStore:
        """Opens or makes the store in ``path``, by default ``chats.db`` in the user's data folder.

        Replies whose process has died become ``INTERRUPTED``, sessions deleted long ago are removed. Raises
        SessionStoreError when the file cannot be used, or is of a newer version.
        """
        path = data_folder() / FILE_NAME if path is None else path.absolute()
        with contextlib.ExitStack() as undo, opening(path):
            database = open_database(path)
            undo.callback(database.close)
            with store_errors(path):
                owner = Owner(path)
            undo.callback(owner.close)
            store = cls(database, owner, wall, monotonic)
            running = owner.running()
            store._interrupt(f"owner NOT IN ({', '.join('?' * len(running))})", running)
            store.purge(keep_deleted_days)
            undo.pop_all()
        return store

    def _interrupt(self, where: str, values: list[str]) -> None:
        dead = f"state = 'partial' AND {where}"
        with self._database.writing() as connection:
            connection.execute(f"INSERT OR IGNORE INTO to_index SELECT id FROM messages WHERE {dead}", values)
            connection.execute(
                f"UPDATE messages SET state = 'interrupted', owner = NULL WHERE {dead}", values
            )

    @property
    def file(self) -> Path:
        return self._database.path

    @property
    def patience(self) -> float:
        """Seconds that reading and writing wait for another process that holds the file."""
        return self._database.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._database.patience = seconds

    @property
    def full_text(self) -> bool:
        """Whether this SQLite has FTS5."""
        return self._index.available

    def close(self) -> None:
        """Saves what replies have come to, which end as ``INTERRUPTED`` unless they were finished."""
        if not self._database.closed:
            self.shelf.flush()
        with self._database.lock:
            try:
                if self._replies and not self._database.closed:
                    self.flush()
                    self._interrupt("owner = ?", [self._owner.token])
            finally:
                self._database.close()
                self._owner.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Sessions

    def new_session(
        self,
        *,
        title: str = "",
        model: str = "",
        system_prompt: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> Session:
        """Without a ``title`` the first message of the user's makes one."""
        title, now = one_line(title, TITLE_LENGTH), self._wall()
        new = Session(0, title, bool(title), now, now, model, system_prompt, settings or {})
        with self._database.writing() as connection:
            session_id = tree.insert_session(connection, new)
            return tree.session(connection, session_id)

    def session(self, session_id: int) -> Session:
        """Also one that was deleted, until it is purged."""
        with self._database.reading() as connection:
            return tree.session(connection, session_id)

    def sessions(self, limit: int = -1, offset: int = 0, *, deleted: bool = False) -> list[SessionSummary]:
        """Those that are not deleted, or those that are; the last updated first. ``limit`` -1: all."""
        with self._database.reading() as connection:
            return tree.list_sessions(connection, limit, offset, deleted)

    def update_session(
        self,
        session_id: int,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        settings: Mapping[str, Any] | None = None,
        draft: str | None = None,
    ) -> Session:
        """Changes what is given. ``updated`` and so the order of the list stay as they are."""
        changes = {
            "model": None if model is None else storable(model),
            "system_prompt": None if system_prompt is None else storable(system_prompt),
            "settings": None if settings is None else json_text(settings, "settings"),
            "draft": None if draft is None else storable(draft),
        }
        with self._database.writing() as connection:
            tree.session(connection, session_id)
            for column, value in changes.items():
                if value is not None:
                    connection.execute(f"UPDATE sessions SET {column} = ? WHERE id = ?", (value, session_id))
            return tree.session(connection, session_id)

    def rename(self, session_id: int, title: str) -> Session:
        """A blank title brings back the one that the first message makes."""
        title = one_line(title, TITLE_LENGTH)
        with self._database.writing() as connection:
            tree.session(connection, session_id)
            tree.rename(connection, session_id, title, named=bool(title))
            if not title:
                tree.title_session(connection, session_id)
            return tree.session(connection, session_id)

    def delete(self, session_id: int) -> None:
        """Hides the session; ``undelete`` takes it back until ``purge`` removes it."""
        self._set_deleted(session_id, self._wall())

    def undelete(self, session_id: int) -> None:
        self._set_deleted(session_id, None)

    def _set_deleted(self, session_id: int, when: float | None) -> None:
        with self._database.writing() as connection:
            tree.session(connection, session_id)
            connection.execute("UPDATE sessions SET deleted_at = ? WHERE id = ?", (when, session_id))

    def purge(self, days: float = 0.0) -> int:
        """Removes for good what was deleted at least so many days ago, and says how many sessions that were."""
        before = self._wall() - days * _DAY
        with self._database.writing() as connection:
            rows = connection.execute("SELECT id FROM sessions WHERE deleted_at <= ?", (before,))
            ids = [row[0] for row in rows]
            tree.remove_sessions(connection, ids)
        if ids:
            self._index.update()  # now, so that their words are gone too
        return len(ids)

    # Messages

    def append(self, session_id: int, role: str, content: str, *, after: int | None = None) -> Message:
        """Adds a complete message below the message ``after``, None: the session's leaf.

        Another process may have moved the leaf, so say ``after`` what the user answers. A session that was deleted
        comes back by it. Raises UsageError for a
        role that is not in ROLES.
        """
        return self._add(session_id, role, content, MessageState.COMPLETE, after=after)

    def edit(self, message_id: int, content: str) -> Message:
        """A new message beside this one, of the same role; a branch of its own begins with it."""
        return self._add(None, None, content, MessageState.COMPLETE, beside=message_id)

    def begin_reply(
        self, session_id: int, *, after: int | None = None, model: str = "", content: str = ""
    ) -> Message:
        """The row of a reply that is about to be generated, as in ``append``. ``content``: how it begins."""
        return self._add(session_id, "assistant", content, MessageState.PARTIAL, after=after, model=model)

    def regenerate(self, message_id: int, *, model: str = "", content: str = "") -> Message:
        """``begin_reply`` beside an earlier reply. Raises UsageError when the message is none."""
        return self._add(None, "assistant", content, MessageState.PARTIAL, beside=message_id, model=model)

    def _add(
        self,
        session_id: int | None,
        role: str | None,
        content: str,
        state: MessageState,
        *,
        after: int | None = None,
        beside: int | None = None,
        model: str = "",
    ) -> Message:
        if role is not None and role not in ROLES:
            raise UsageError(f"a message is of {', '.join(ROLES)}, not of {one_line(role, 40)!r}")
        partial = state is MessageState.PARTIAL
        now = self._wall()
        with self._database.writing() as connection:
            if beside is not None:
                sibling = tree.message(connection, beside)
                session_id, parent = sibling.session_id, sibling.parent_id
                if partial and sibling.role != "assistant":
                    raise UsageError(f"message {beside} is no reply")
                role = sibling.role
            else:
                assert session_id is not None
                leaf = tree.session(connection, session_id).leaf_id
                parent = leaf if after is None else after
                if parent is not None and tree.message(connection, parent).session_id != session_id:
                    raise UsageError(f"message {parent} is not of conversation {session_id}")
            assert role is not None
            message_id = tree.insert(
                connection, session_id, parent, role, content, state, created=now, model=model,
                owner=self._owner.token if partial else None,
            )  # fmt: skip
            tree.add(connection, message_id, session_id, parent, now)
            # Another process may have deleted what is open here: what is said in it must not be purged.
            connection.execute("UPDATE sessions SET deleted_at = NULL WHERE id = ?", (session_id,))
            if role == "user" and not tree.session(connection, session_id).title:
                tree.title_session(connection, session_id)
            added = tree.message(connection, message_id)
        if partial:
            self._replies.begin(added)
        return added

    def update_reply(self, message_id: int, text: str) -> None:
        """What the reply has come to, the whole of it. Neither writes nor waits: ``flush_due`` saves it.

        Raises UsageError for a reply that this store has not begun or that was finished.
        """
        self._replies.get(message_id).text = text

    def flush_due(self) -> None:
        """Writes the texts that have waited for PARTIAL_SECONDS. Call it from a timer, about every 0.1 s.

        After a SessionStoreError one may go on: the text is kept, and written with a later one.
        """
        self._replies.flush(PARTIAL_SECONDS, COMFORT_SECONDS)

    def flush(self) -> None:
        """Writes all texts that have not been written."""
        self._replies.flush(0.0)

    def finish_reply(
        self,
        message_id: int,
        text: str | None = None,
        *,
        state: MessageState = MessageState.COMPLETE,
        finish_reason: str | None = None,
        stats: Mapping[str, Any] | None = None,
        token_count: int | None = None,
    ) -> Message:
        """Ends a reply. ``text`` None: what ``update_reply`` got last. ``stats``: what JSON can hold.

        Raises UsageError for a reply that this store has not begun or that was finished; after a SessionStoreError
        it may be tried again.
        """
        if state is MessageState.PARTIAL:
            raise UsageError("a reply does not end as partial")
        stats_json = None if stats is None else json_text(stats, "statistics")
        with self._database.lock:
            reply = self._replies.get(message_id)
            if text is not None:
                reply.text = text
            with self._database.writing() as connection:
                connection.execute(
                    """UPDATE messages SET content = ?, state = ?, owner = NULL, finish_reason = ?, stats = ?,
                    token_count = ? WHERE id = ?""",
                    (
                        storable(reply.text), state.value,
                        None if finish_reason is None else storable(finish_reason),
                        stats_json, token_count, message_id,
                    ),
                )  # fmt: skip
                connection.execute("INSERT OR IGNORE INTO to_index VALUES (?)", (message_id,))
                ended = tree.message(connection, message_id)
                tree.touch(connection, ended.session_id, self._wall())
            self._replies.end(message_id)
        return ended

    def message(self, message_id: int) -> Message:
        """With the latest text, if it is a reply that is being generated here."""
        with self._database.reading() as connection:
            return self._replies.latest(tree.message(connection, message_id))

    def path(self, session_id: int) -> list[Message]:
        """The branch that is shown: from the first message to the leaf."""
        with self._database.reading() as connection:
            leaf = tree.session(connection, session_id).leaf_id
            return [self._replies.latest(m) for m in tree.path(connection, leaf)]

    def siblings(self, message_id: int) -> list[int]:
        """The ids of the message and those beside it, in their order: its own is at ``position - 1``."""
        with self._database.reading() as connection:
            return tree.siblings(connection, tree.message(connection, message_id))

    def switch(self, message_id: int) -> list[Message]:
        """Shows the branch of this message as it was last shown, and returns its path."""
        with self._database.writing() as connection:
            session_id = tree.message(connection, message_id).session_id
            tree.show(connection, session_id, tree.last_visited_leaf(connection, message_id))
        return self.path(session_id)

    def search(self, query: str, limit: int = 50) -> list[SearchHit]:
        """Messages and titles that have all words of ``query``, each perhaps only as the beginning of one.

        Any text is a valid query. The best come first. Replies are found once they have ended.
        """
        return self._index.search(query, limit)

    # Whole conversations (sessions_export makes files of them)

    def conversation(self, session_id: int) -> Conversation:
        """The session with all branches."""
        with self._database.reading() as connection:
            whole = tree.conversation(connection, session_id)
            return Conversation(
                whole.session, tuple(map(self._replies.latest, whole.messages)), whole.visited
            )

    def add_conversation(self, source: Conversation) -> Session:
        """Adds a copy under ids of its own; a reply that was being generated is interrupted in it."""
        with self._database.writing() as connection:
            added = tree.session(connection, tree.insert_conversation(connection, source))
        self._index.update()  # now, since it may have thousands of messages
        return added
