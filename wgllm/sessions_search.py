"""Full-text search over messages and titles: SQLite's FTS5, or reading all texts where that does not help.

The index has copies of the texts, by the message's id or, for a title, the session's as a negative number. It can be
thrown away and made anew at any time: what has changed since it was written stands in ``to_index``, and what was
deleted is not found, since rows are joined with the messages. So an SQLite without FTS5 may write to the same file,
and damage to the index costs nothing but time.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata

from wgllm.errors import SessionStoreError
from wgllm.sessions_db import Database
from wgllm.sessions_text import one_direction, one_line, plain, storable
from wgllm.sessions_types import SearchHit

INDEXED = 1 << 18
"""Characters of a message that are searched: ten times as many took a second to index."""
_MAX_QUERY, _MAX_WORDS = 1000, 32
_LONG = 20_000
"""Characters from which on FTS5's snippets take too long: they look at every place where a word stands."""
_START, _END = "\x02", "\x03"
# Scripts that put no blanks between words, of which FTS5 makes one word a line: Thai to Khmer, Chinese, Japanese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_HIT = "SELECT s.id, s.title, m.id, m.role, "


def has_fts5(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("CREATE VIRTUAL TABLE temp.fts5_is_there USING fts5(text)")
    except sqlite3.OperationalError as error:
        if "no such module" in str(error):
            return False
        raise
    connection.execute("DROP TABLE temp.fts5_is_there")
    return True


class SearchIndex:
    """The index of one database. It is brought up to date when something is looked for, so that saving never waits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.reading() as connection:
            self.available = has_fts5(connection)
            connection.create_function("wgllm_holds", 2, _holds, deterministic=True)
            there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'search_index'").fetchone()
        self._broken = there is None
        """Whether the index must be made anew."""
        self.update()

    def update(self) -> None:
        """Puts into the index what it lacks. What fails now (the disk is full) is left for the next time."""
        if not self.available:
            return
        try:
            with self._database.writing() as connection:
                if self._broken:
                    self._create(connection)
                for (row_id,) in connection.execute("SELECT id FROM to_index").fetchall():
                    self._index(connection, row_id)
                connection.execute("DELETE FROM to_index")
            self._broken = False
        except SessionStoreError as error:
            if error.__cause__ is None:
                raise
            self._broken |= _is_damaged(error.__cause__)

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE IF EXISTS search_index")
        connection.execute(
            """CREATE VIRTUAL TABLE search_index USING
            fts5(text, tokenize = 'unicode61 remove_diacritics 2', prefix = '1 2 3')"""
        )
        connection.execute(
            """INSERT OR IGNORE INTO to_index
            SELECT id FROM messages WHERE state <> 'partial' UNION SELECT -id FROM sessions"""
        )

    @staticmethod
    def _index(connection: sqlite3.Connection, row_id: int) -> None:
        text = connection.execute(
            f"SELECT substr(content, 1, {INDEXED}) FROM messages WHERE id = ?1"
            " UNION ALL SELECT title FROM sessions WHERE id = -?1",
            (row_id,),
        ).fetchone()
        connection.execute("DELETE FROM search_index WHERE rowid = ?", (row_id,))
        if text is not None and text[0]:
            connection.execute(
                "INSERT INTO search_index(rowid, text) VALUES (?, ?)", (row_id, plain(text[0]))
            )

    def search(self, query: str, limit: int) -> list[SearchHit]:
        """Messages and titles that have all words of ``query``, each of which may be the beginning of one.

        Any text is a valid query. Raises SessionStoreError.
        """
        words = query_words(query)
        if not words:
            return []
        if self.available and not any(_UNSPACED.search(word) for word in words):
            for _ in range(2):
                with self._database.reading() as connection:
                    lacks = connection.execute("SELECT 1 FROM to_index LIMIT 1").fetchone()
                if self._broken or lacks:
                    self.update()
                if self._broken:
                    break
                with self._database.reading() as connection:
                    try:
                        return _match(connection, words, limit)
                    except sqlite3.DatabaseError as error:
                        if not _is_damaged(error):
                            raise
                        self._broken = True
        with self._database.reading() as connection:
            return _scan(connection, words, limit)


def _is_damaged(error: BaseException) -> bool:
    """Whether the index is to blame. FTS5 says so in many ways, the rest of SQLite in few what else there can be."""
    others = ("full", "locked", "busy", "readonly", "I/O", "unable to open", "interrupted")
    return not any(word in str(error) for word in others)


def query_words(query: str) -> list[str]:
    """The words that are looked for: runs of what the index takes for parts of words."""
    words, word = [], ""
    for c in storable(query[:_MAX_QUERY]) + " ":
        # unicode61's rule: letters, numbers, private use; and marks, which belong to the letter before them.
        category = unicodedata.category(c)
        if category[0] in "LN" or category == "Co" or (category[0] == "M" and word):
            word += c
        elif word:
            words.append(word)
            word = ""
    return words[:_MAX_WORDS]


def _match(connection: sqlite3.Connection, words: list[str], limit: int) -> list[SearchHit]:
    rows = connection.execute(
        f"""{_HIT} length(text) > {_LONG}, CASE WHEN length(text) > {_LONG} THEN text
            ELSE snippet(search_index, 0, '{_START}', '{_END}', '…', 16) END
        FROM search_index LEFT JOIN messages m ON m.id = search_index.rowid
        JOIN sessions s ON s.id = ifnull(m.session, -search_index.rowid)
        WHERE search_index MATCH ? AND s.deleted_at IS NULL ORDER BY rank LIMIT ?""",
        # In quotes nothing is an operator, and a word has no quotes.
        (" ".join(f'"{word}"*' for word in words), limit),
    )
    return [
        SearchHit._make((*found, *(_excerpt(text, words) if whole else _marked(text))))
        for *found, whole, text in rows
    ]


def _marked(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The snippet in one line, without the marks that SQLite put around what it found, and where these were."""
    line, spans, start = "", [], 0
    for piece in re.split(f"([{_START}{_END}])", " ".join(one_direction(text).split())):
        if piece == _START:
            start = len(line)
        elif piece == _END:
            spans.append((start, len(line)))
        else:
            line += piece
    return line, tuple(spans)


def _scan(connection: sqlite3.Connection, words: list[str], limit: int) -> list[SearchHit]:
    """Reads all texts; finds words in the midst of others too, the newest first, titles before messages."""
    joined = "\n".join(word.casefold() for word in words)
    titles = connection.execute(
        """SELECT id, title, NULL, NULL, title FROM sessions
        WHERE deleted_at IS NULL AND wgllm_holds(title, ?) ORDER BY updated DESC LIMIT ?""",
        (joined, limit),
    ).fetchall()
    messages = connection.execute(
        f"""{_HIT} substr(content, 1, {INDEXED}) AS text FROM messages m JOIN sessions s ON s.id = m.session
        WHERE deleted_at IS NULL AND state <> 'partial' AND wgllm_holds(text, ?) ORDER BY m.id DESC LIMIT ?""",
        (joined, limit - len(titles)),
    ).fetchall()
    return [SearchHit._make((*found, *_excerpt(text, words))) for *found, text in titles + messages]


def _holds(text: str, words: str) -> bool:
    text = text.casefold()
    return all(word in text for word in words.split("\n"))


def _excerpt(text: str, words: list[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    text = plain(text)
    wanted = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
    found = wanted.search(text)
    start = max(found.start() - 40, 0) if found else 0
    line = ("…" if start else "") + one_line(text[start:], 120)
    return line, tuple(m.span() for m in wanted.finditer(line))
