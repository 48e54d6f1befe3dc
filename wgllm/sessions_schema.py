"""The tables of the database of conversations, version by version. A version that was released never changes."""

from __future__ import annotations

APPLICATION_ID = 0x77676C6D
"""In the file's header: "wglm"."""

# Large texts stand last in their tables, since SQLite walks over what stands before a column to read it.
# Children have larger ids than their parents, so that no walk along parents can go round in circles.
# What was deleted frees no id: AUTOINCREMENT.
_VERSION_1 = (
    """CREATE TABLE sessions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        named INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        deleted_at REAL,
        leaf INTEGER REFERENCES messages(id) DEFERRABLE INITIALLY DEFERRED,
        model TEXT NOT NULL,
        settings TEXT NOT NULL,
        system_prompt TEXT NOT NULL,
        draft TEXT NOT NULL DEFAULT ''
    )""",
    """CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        session INTEGER NOT NULL REFERENCES sessions(id) DEFERRABLE INITIALLY DEFERRED,
        parent INTEGER REFERENCES messages(id) DEFERRABLE INITIALLY DEFERRED CHECK (parent < id),
        sibling INTEGER NOT NULL,
        role TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('partial', 'complete', 'stopped', 'error', 'interrupted')),
        owner TEXT,
        finish_reason TEXT,
        model TEXT NOT NULL,
        created REAL NOT NULL,
        token_count INTEGER,
        stats TEXT,
        content TEXT NOT NULL
    )""",
    "CREATE UNIQUE INDEX messages_place ON messages(session, ifnull(parent, 0), sibling)",
    "CREATE INDEX messages_parent ON messages(parent, sibling)",
    "CREATE INDEX messages_partial ON messages(id) WHERE state = 'partial'",
    "CREATE INDEX sessions_leaf ON sessions(leaf)",
    # Which child's branch was shown last.
    """CREATE TABLE visited (
        parent INTEGER PRIMARY KEY REFERENCES messages(id) ON DELETE CASCADE,
        child INTEGER NOT NULL REFERENCES messages(id) ON DELETE CASCADE
    )""",
    "CREATE INDEX visited_child ON visited(child)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

_VERSION_2 = (
    """CREATE TABLE presets (
        name TEXT PRIMARY KEY,
        settings TEXT NOT NULL,
        system_prompt TEXT NOT NULL
    )""",
    "CREATE TABLE inputs (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL)",
    "CREATE TABLE kept (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # What changed since the full-text index was written: ids of messages, and those of sessions (for their titles)
    # as negative numbers.
    "CREATE TABLE to_index (id INTEGER PRIMARY KEY)",
    "INSERT INTO to_index SELECT id FROM messages WHERE state <> 'partial' UNION SELECT -id FROM sessions",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2)
"""Statements that lead to version 1, from there to version 2, …; each tuple runs in one transaction."""
