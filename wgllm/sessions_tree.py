"""Messages as a tree in the database: functions of a connection that is in a transaction.

A session's leaf says which branch is shown. ``visited`` remembers for a message whose branch was shown last below
it, so that coming back to a branch shows it as it was left; without an entry that is its newest child.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from wgllm.errors import UsageError
from wgllm.sessions_text import SNIPPET_LENGTH, json_text, one_line, storable, title_of
from wgllm.sessions_types import (
    Conversation,
    Message,
    MessageState,
    Session,
    SessionSummary,
    parse_mapping,
)

_SIBLINGS = "s.session = m.session AND ifnull(s.parent, 0) = ifnull(m.parent, 0)"
_MESSAGE = f"""m.id, m.session, m.parent, m.role, m.content, m.state, m.finish_reason, m.model, m.created,
    m.token_count, m.stats, m.sibling + 1, (SELECT max(s.sibling) + 1 FROM messages s WHERE {_SIBLINGS})"""
_SESSION = """id, title, named, created, updated, model, system_prompt, settings, draft, leaf, deleted_at"""
# The way from a message up to its first one.
_WAY = """WITH RECURSIVE way(id, parent) AS (
    SELECT id, parent FROM messages WHERE id = ?
    UNION ALL
    SELECT m.id, m.parent FROM way JOIN messages m ON m.id = way.parent
)"""
# From a message down along the branches that were shown last. Children have the larger ids.
_DOWN = """WITH RECURSIVE down(id) AS (
    SELECT ?
    UNION ALL
    SELECT ifnull(
        (SELECT child FROM visited WHERE parent = down.id),
        (SELECT id FROM messages WHERE parent = down.id ORDER BY sibling DESC LIMIT 1)
    ) AS next FROM down WHERE next IS NOT NULL
)
SELECT max(id) FROM down"""
_STATES = {state.value: state for state in MessageState}


def _message(row: tuple[Any, ...]) -> Message:
    return Message._make((*row[:5], _STATES[row[5]], *row[6:]))


def session(connection: sqlite3.Connection, session_id: int) -> Session:
    """Raises UsageError when there is none."""
    row = connection.execute(f"SELECT {_SESSION} FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise UsageError(f"there is no conversation {session_id}")
    _, title, named, created, updated, model, system_prompt, settings, draft, leaf, deleted_at = row
    return Session(
        session_id, title, bool(named), created, updated, model, system_prompt, parse_mapping(settings), draft,
        leaf, deleted_at,
    )  # fmt: skip


def insert_session(connection: sqlite3.Connection, new: Session) -> int:
    """Inserts it, without its leaf and under an id of its own, which is returned. Raises UsageError."""
    cursor = connection.execute(
        "INSERT INTO sessions(title, named, created, updated, model, system_prompt, settings, draft)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            storable(new.title), new.named, new.created, new.updated, storable(new.model),
            storable(new.system_prompt), json_text(new.settings, "settings"), storable(new.draft),
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None
    connection.execute("INSERT INTO to_index VALUES (?)", (-cursor.lastrowid,))
    return cursor.lastrowid


def list_sessions(
    connection: sqlite3.Connection, limit: int, offset: int, deleted: bool
) -> list[SessionSummary]:
    """Those used last come first."""
    # The beginning of a message, or of what follows its reasoning, which is cut into one line here.
    rows = connection.execute(
        f"""SELECT id, title, updated, model,
            ifnull((
                SELECT substr(content, ifnull(nullif(instr(content, '</think>'), 0) + 8, 1), {10 * SNIPPET_LENGTH})
                FROM messages WHERE id = leaf
            ), ''),
            (SELECT count(*) FROM messages m WHERE m.session = sessions.id), deleted_at
        FROM sessions WHERE deleted_at IS {"NOT" if deleted else ""} NULL
        ORDER BY updated DESC, id DESC LIMIT ? OFFSET ?""",
        (limit, offset),
    )
    return [
        SessionSummary(
            session_id, title, updated, model, one_line(text, SNIPPET_LENGTH), n_messages, deleted_at
        )
        for session_id, title, updated, model, text, n_messages, deleted_at in rows
    ]


def message(connection: sqlite3.Connection, message_id: int) -> Message:
    """Raises UsageError when there is none."""
    row = connection.execute(f"SELECT {_MESSAGE} FROM messages m WHERE id = ?", (message_id,)).fetchone()
    if row is None:
        raise UsageError(f"there is no message {message_id}")
    return _message(row)


def path(connection: sqlite3.Connection, leaf: int | None) -> list[Message]:
    """From the first message to ``leaf``."""
    # Ids grow on the way, so that this is its order without sorting texts.
    rows = connection.execute(
        f"{_WAY} SELECT {_MESSAGE} FROM messages m WHERE id IN (SELECT id FROM way) ORDER BY id", (leaf,)
    )
    return [_message(row) for row in rows]


def siblings(connection: sqlite3.Connection, of: Message) -> list[int]:
    """The ids of all messages with the same parent, in their order."""
    rows = connection.execute(
        "SELECT id FROM messages WHERE session = ? AND ifnull(parent, 0) = ? ORDER BY sibling",
        (of.session_id, of.parent_id or 0),
    )
    return [row[0] for row in rows]


def insert(
    connection: sqlite3.Connection,
    session_id: int,
    parent: int | None,
    role: str,
    content: str,
    state: MessageState,
    *,
    created: float,
    owner: str | None = None,
    finish_reason: str | None = None,
    model: str = "",
    token_count: int | None = None,
    stats: str | None = None,
) -> int:
    """Inserts a message as the newest child of ``parent``, and returns its id."""
    cursor = connection.execute(
        """INSERT INTO messages(
            session, parent, sibling, role, state, owner, finish_reason, model, created, token_count, stats, content)
        VALUES (?1, ?2, (SELECT ifnull(max(sibling) + 1, 0) FROM messages
            WHERE session = ?1 AND ifnull(parent, 0) = ifnull(?2, 0)), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)""",
        (
            session_id, parent, role, state.value, owner,
            None if finish_reason is None else storable(finish_reason),
            storable(model), created, token_count, stats, storable(content),
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None
    if state is not MessageState.PARTIAL:
        connection.execute("INSERT INTO to_index VALUES (?)", (cursor.lastrowid,))
    return cursor.lastrowid


def add(
    connection: sqlite3.Connection, message_id: int, session_id: int, parent: int | None, now: float
) -> None:
    """Shows the new message: it becomes the leaf."""
    (leaf,) = connection.execute("SELECT leaf FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if parent is not None and parent == leaf:
        _visit(connection, [(parent, message_id)])
        connection.execute("UPDATE sessions SET leaf = ? WHERE id = ?", (message_id, session_id))
    else:
        show(connection, session_id, message_id)
    touch(connection, session_id, now)


def touch(connection: sqlite3.Connection, session_id: int, now: float) -> None:
    connection.execute("UPDATE sessions SET updated = ? WHERE id = ?", (now, session_id))


def show(connection: sqlite3.Connection, session_id: int, leaf: int) -> None:
    """Makes ``leaf`` the session's leaf and remembers the way to it."""
    way = connection.execute(f"{_WAY} SELECT parent, id FROM way WHERE parent IS NOT NULL", (leaf,))
    _visit(connection, way.fetchall())
    connection.execute("UPDATE sessions SET leaf = ? WHERE id = ?", (leaf, session_id))


def _visit(connection: sqlite3.Connection, steps: Iterable[tuple[int, int]]) -> None:
    connection.executemany(
        "INSERT INTO visited(parent, child) VALUES (?, ?)"
        " ON CONFLICT(parent) DO UPDATE SET child = excluded.child WHERE child <> excluded.child",
        steps,
    )


def last_visited_leaf(connection: sqlite3.Connection, message_id: int) -> int:
    return int(connection.execute(_DOWN, (message_id,)).fetchone()[0])


def title_session(connection: sqlite3.Connection, session_id: int) -> None:
    """Gives a session that the user has not named the title that its first message suggests."""
    row = connection.execute(
        """SELECT substr(content, 1, 10000) FROM messages
        WHERE session = ? AND role = 'user' ORDER BY id LIMIT 1""",
        (session_id,),
    ).fetchone()
    if row is not None:
        rename(connection, session_id, title_of(row[0]), named=False)


def rename(connection: sqlite3.Connection, session_id: int, title: str, *, named: bool) -> None:
    connection.execute(
        "UPDATE sessions SET title = ?, named = ? WHERE id = ?", (storable(title), named, session_id)
    )
    connection.execute("INSERT OR IGNORE INTO to_index VALUES (?)", (-session_id,))


def conversation(connection: sqlite3.Connection, session_id: int) -> Conversation:
    """The session with all that belongs to it. Raises UsageError."""
    rows = connection.execute(
        f"SELECT {_MESSAGE} FROM messages m WHERE session = ? ORDER BY id", (session_id,)
    )
    messages = tuple(map(_message, rows))
    visited = connection.execute(
        "SELECT v.parent, v.child FROM visited v JOIN messages m ON m.id = v.parent WHERE m.session = ?",
        (session_id,),
    )
    return Conversation(session(connection, session_id), messages, dict(visited))


def insert_conversation(connection: sqlite3.Connection, source: Conversation) -> int:
    """Inserts a copy with ids of its own, and returns the session's."""
    session_id = insert_session(connection, source.session)
    ids: dict[int, int] = {}
    for m in source.messages:
        parent = None if m.parent_id is None else ids[m.parent_id]
        # Nobody goes on with the copy of a reply that is being generated.
        state = MessageState.INTERRUPTED if m.state is MessageState.PARTIAL else m.state
        ids[m.id] = insert(
            connection, session_id, parent, m.role, m.content, state, created=m.created,
            finish_reason=m.finish_reason, model=m.model, token_count=m.token_count, stats=m.stats_json,
        )  # fmt: skip
    _visit(connection, [(ids[parent], ids[child]) for parent, child in source.visited.items()])
    if source.session.leaf_id is not None:
        leaf = ids[source.session.leaf_id]
        connection.execute("UPDATE sessions SET leaf = ? WHERE id = ?", (leaf, session_id))
    return session_id


def remove_sessions(connection: sqlite3.Connection, session_ids: Iterable[int]) -> None:
    """Deletes them for good; the full-text index learns of it from ``to_index``."""
    for session_id in session_ids:
        connection.execute("UPDATE sessions SET leaf = NULL WHERE id = ?", (session_id,))
        connection.execute(
            "INSERT OR IGNORE INTO to_index SELECT -?1 UNION SELECT id FROM messages WHERE session = ?1",
            (session_id,),
        )
        connection.execute("DELETE FROM messages WHERE session = ?", (session_id,))
        connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
