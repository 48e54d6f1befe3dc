"""Lines that a person types, with editing and history where the platform has them, or that a pipe brings."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

from wgllm.cli.render import INPUT_COLOUR

_QUOTES = '"""'
_MAX_HISTORY = 1000


def state_folder() -> Path:
    """Where wgllm keeps what it remembers: ``WGLLM_STATE_DIR``, else the user's state folder."""
    if chosen := os.environ.get("WGLLM_STATE_DIR"):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_state_dir("wgllm", appauthor=False))


class Lines:
    """Reads entries: a line, lines that end in a backslash and the next one, or what stands between triple quotes."""

    def __init__(self, *, simple: bool = False, colour: bool = False) -> None:
        self.typed = sys.stdin.isatty()
        """Whether a person types, rather than a pipe."""
        self._readline: ModuleType | None = None
        self._history: _History | None = None
        if isinstance(sys.stdin, io.TextIOWrapper):
            # What editors of Windows write begins with a byte order mark.
            sys.stdin.reconfigure(encoding="utf-8" if self.typed else "utf-8-sig", errors="replace")
        if self.typed and sys.stdout.isatty() and not simple:
            try:
                import readline
            except ImportError:  # Windows, whose terminal edits lines itself
                pass
            else:
                self._readline = readline
                self._history = _History(state_folder() / "history")
                for line in self._history.load():
                    readline.add_history(line)
        # libedit shows the marks that tell readline what takes no place.
        marks = self._readline is not None and "libedit" not in (self._readline.__doc__ or "")
        start, end = (f"\x01\x1b[{INPUT_COLOUR}m\x02", "\x01\x1b[0m\x02") if colour and marks else ("", "")
        self._prompts = {text: f"{start}{text}{end}" for text in ("> ", "… ")}

    def read(self) -> str | None:
        """The next entry, or None at the end. Raises KeyboardInterrupt."""
        line = self._line("> ")
        if line is None:
            return None
        if line.lstrip().startswith(_QUOTES):
            return self._quoted(line.lstrip()[len(_QUOTES) :])
        parts = []
        while line is not None and line.endswith("\\"):
            parts.append(line[:-1])
            line = self._line("… ")
        return "\n".join([*parts, *([] if line is None else [line])])

    def _quoted(self, line: str | None) -> str:
        parts = []
        while line is not None and not line.rstrip().endswith(_QUOTES):
            parts.append(line)
            line = self._line("… ")
        if line is not None:
            parts.append(line.rstrip()[: -len(_QUOTES)])
        return "\n".join(parts).strip("\n")

    def _line(self, prompt: str) -> str | None:
        if not self.typed:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            if sys.stdout.isatty():
                line = input(self._prompts[prompt])
            else:  # the prompt is not part of the output
                sys.stderr.write(prompt)
                sys.stderr.flush()
                line = sys.stdin.readline()
                if not line:
                    raise EOFError
        except EOFError:
            sys.stderr.write("\n")
            return None
        # What the terminal could not decode comes as surrogates.
        line = line.rstrip("\r\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if self._history is not None:
            self._history.add(line)
        return line


class _History:
    """The last lines, in a file that only its owner may read. Trouble with it is no reason to stop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = ""

    def load(self) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(OSError):
            if stat.S_ISREG(self._path.stat().st_mode):
                lines = self._path.read_bytes().decode("utf-8", "replace").splitlines()
        if len(lines) > 2 * _MAX_HISTORY:
            lines = lines[-_MAX_HISTORY:]
            with contextlib.suppress(OSError):
                partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
                with self._open(partial) as file:
                    file.write("".join(f"{line}\n" for line in lines))
                partial.replace(self._path)
        return lines[-_MAX_HISTORY:]

    def add(self, line: str) -> None:
        if not line.strip() or line == self._last or "\n" in line:
            return
        self._last = line
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._open(self._path) as file:
                file.write(f"{line}\n")

    @staticmethod
    def _open(path: Path) -> io.TextIOWrapper:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "w", encoding="utf-8", errors="replace")
