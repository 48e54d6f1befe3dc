"""What is kept beside conversations: presets, what was typed, and whatever the application wants to find again."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from sqlite3 import Connection
from typing import Any

from wgllm.errors import SessionStoreError, UsageError
from wgllm.sessions_db import Database
from wgllm.sessions_text import json_text, one_line, storable
from wgllm.sessions_types import Preset, parse_mapping

_PRESET_NAME_LENGTH = 100
COMFORT_SECONDS = 0.2
"""How long writing waits for another process where the user does not wait for it."""
_AGAIN_SECONDS = 2.0


class Shelf:
    """Writes what is only a comfort: at once if that can be, else with a later write or when the store is closed."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._waiting: dict[tuple[str, str], Callable[[Connection], object]] = {}
        self._not_before = -math.inf
        self._lock = threading.RLock()
        self.trouble: Callable[[SessionStoreError], None] | None = None
        """Is told why writing failed, once until it works again; None: writing raises."""
        self._told = False

    def write(self, table: str, key: str, job: Callable[[Connection], object]) -> None:
        """Does ``job`` now or later, in place of one of the same table and key that waits."""
        with self._lock:
            self._waiting.pop((table, key), None)
            self._waiting[table, key] = job
            if self.trouble is None or self._monotonic() >= self._not_before:
                self.flush()

    def waits(self, table: str, key: str) -> bool:
        return (table, key) in self._waiting

    def flush(self) -> None:
        """Writes what waits. Raises SessionStoreError when there is no ``trouble`` to be told."""
        with self._lock:
            if not self._waiting:
                return
            jobs = list(self._waiting.values())
            try:
                with self._database.writing(None if self.trouble is None else COMFORT_SECONDS) as connection:
                    for job in jobs:
                        job(connection)
            except SessionStoreError as error:
                self._not_before = self._monotonic() + _AGAIN_SECONDS
                if self.trouble is None:
                    self._waiting.clear()
                    raise
                if not self._told:
                    self._told = True
                    self.trouble(error)
                return
            self._waiting.clear()
            self._told = False


class Presets:
    """Named settings with a system prompt."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, name: str, settings: Mapping[str, Any], system_prompt: str = "") -> Preset:
        """Makes the preset or replaces it. Raises UsageError for a name without characters."""
        name = one_line(storable(name), _PRESET_NAME_LENGTH)
        if not name:
            raise UsageError("a preset needs a name")
        text = json_text(settings, "settings")
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO presets VALUES (?, ?, ?)", (name, text, storable(system_prompt))
            )
        return Preset(name, parse_mapping(text), storable(system_prompt))

    def list(self) -> list[Preset]:
        """All presets by name."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT name, settings, system_prompt FROM presets ORDER BY name")
            return [Preset(name, parse_mapping(settings), prompt) for name, settings, prompt in rows]

    def delete(self, name: str) -> None:
        """Raises UsageError when there is none of that name."""
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM presets WHERE name = ?", (storable(name),)).rowcount:
                raise UsageError(f"there is no preset {one_line(name, _PRESET_NAME_LENGTH)!r}")


class Inputs:
    """What was typed in all conversations, to be recalled."""

    MOST = 1000
    LONGEST = 100_000
    """Characters; what is longer was pasted, and stands in its conversation."""

    def __init__(self, database: Database, shelf: Shelf) -> None:
        self._database = database
        self._shelf = shelf

    def add(self, text: str) -> None:
        """Keeps ``text`` as the newest, unless it is blank, too long or the newest already."""
        text = storable(text)
        if not text.strip() or len(text) > self.LONGEST:
            return

        def insert(connection: Connection) -> None:
            newest = connection.execute("SELECT text FROM inputs ORDER BY id DESC LIMIT 1").fetchone()
            if newest != (text,):
                connection.execute("INSERT INTO inputs(text) VALUES (?)", (text,))
                connection.execute(
                    "DELETE FROM inputs WHERE id <= (SELECT max(id) FROM inputs) - ?", (self.MOST,)
                )

        self._shelf.write("inputs", text, insert)

    def recent(self, limit: int = MOST) -> list[str]:
        """The newest first."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT text FROM inputs ORDER BY id DESC LIMIT ?", (limit,))
            return [row[0] for row in rows]


class Kept:
    """Values by key, so that the application comes back as it was left: the open session, widths, positions."""

    def __init__(self, database: Database, shelf: Shelf) -> None:
        self._database = database
        self._shelf = shelf
        self._latest: dict[str, str] = {}
        """What was put last, which may still wait to be written."""

    def put(self, key: str, value: Any) -> None:
        """Raises UsageError for a value that JSON cannot hold."""
        text = json_text({"value": value}, f"the value of {key}")
        self._latest[key] = text
        self._shelf.write(
            "kept",
            key,
            lambda connection: connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, text)),
        )

    def get(self, key: str, default: Any = None) -> Any:
        if self._shelf.waits("kept", key):
            return parse_mapping(self._latest[key]).get("value", default)
        with self._database.reading() as connection:
            row = connection.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return default if row is None else parse_mapping(row[0]).get("value", default)
