"""``wgllm serve`` as a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PATIENCE = 300.0
"""Seconds for its start, and for its end: a machine may be busy."""


class ServerProcess:
    """The server, and what it has said."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.lines: list[str] = []
        """Of standard error."""
        self.url = ""
        self.other: list[str] = []
        """Nothing: what scripted servers were asked in vain."""
        self._found = threading.Event()
        self._said = threading.Condition()
        self._marks = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wgllm", "serve", "--port", "0", "-v", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def asked(self, pattern: str) -> int:
        """How many requests were answered before whose line has the regular expression."""
        self._wait_for_lines()
        return sum(re.search(pattern, line) is not None for line in self.lines)

    def forget(self) -> None:
        """What was answered before counts no more."""
        self._wait_for_lines()
        self.lines.clear()

    def close(self) -> int:
        """Ends it as Ctrl-C does; its exit code."""
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(_PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            assert self._process.stderr is not None
            self._process.stderr.close()

    def wait_for_address(self) -> None:
        if not self._found.wait(_PATIENCE) or not self.url:
            raise AssertionError("\n".join(["the server did not start", *self.lines]))

    def _wait_for_lines(self) -> None:
        """Until it has told of all that it has answered: it tells of one answer after the other."""
        self._marks += 1
        path = f"/marks/{self._marks}"
        with contextlib.suppress(urllib.error.HTTPError):  # there is no such page
            urllib.request.urlopen(self.url.rstrip("/") + path, timeout=_PATIENCE).close()
        with self._said:
            told = self._said.wait_for(lambda: any(f"GET {path} " in line for line in self.lines), _PATIENCE)
        assert told, "\n".join(["the server did not tell what it was asked", *self.lines])

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._said:
                self.lines.append(line.rstrip())
                self._said.notify_all()
            if not self.url and (match := re.search(r" at (http://\S+)", line)):
                self.url = match[1] + "/"
                self._found.set()
        self._found.set()


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[ServerProcess]:
    """``wgllm serve`` with these arguments, on a free port."""
    server = ServerProcess(arguments)
    try:
        server.wait_for_address()
        yield server
    finally:
        server.close()
