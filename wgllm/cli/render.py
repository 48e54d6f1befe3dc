"""What commands show: text or JSON on stdout, messages on stderr and in a log, colours where they are welcome."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from wgllm.cli.console import harmless, print_json, write_text
from wgllm.errors import UsageError
from wgllm.hub_progress import animates

if TYPE_CHECKING:
    from wgllm.engine import Event

PROMPT_COLOUR = "33"
INPUT_COLOUR = "1;32"
DIM = "2"


def wants_colour(asked: bool | None, stream: TextIO) -> bool:
    """Whether to colour what goes to ``stream``: as asked, else on a terminal that is neither dumb nor NO_COLOR."""
    if asked is not None:
        return asked
    return animates(stream) and not os.environ.get("NO_COLOR")


def coloured(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if text else text


class Messages:
    """Lines for people on stderr, all of them with the time in ``log_file`` too."""

    def __init__(
        self, *, quiet: bool = False, verbose: bool = False, log_file: str | None = None, dim: bool
    ) -> None:
        self.quiet, self.verbose, self.dim = quiet, verbose, dim
        try:
            # Names of files may hold what UTF-8 has no bytes for.
            self._log = Path(log_file).open("a", encoding="utf-8", errors="replace") if log_file else None  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"{log_file}: {error.strerror}") from error

    def info(self, text: str) -> None:
        self._put(text, not self.quiet)

    def detail(self, text: str) -> None:
        """Shown with --verbose only."""
        self._put(text, self.verbose and not self.quiet)

    def warn(self, text: str) -> None:
        """Shown whatever was asked for."""
        self._put(text, True)

    def _put(self, text: str, shown: bool) -> None:
        if self._log is not None:
            self._log.write(f"{datetime.now().isoformat(timespec='milliseconds')} {text}\n")
            self._log.flush()
        if shown:
            text = harmless(text)
            sys.stderr.write((coloured(text, DIM) if self.dim else text) + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


class Output(Protocol):
    """Where the events of a generation go."""

    def prompt(self, text: str) -> None:
        """The prompt, when it is to be shown."""

    def event(self, event: Event) -> None: ...

    def text(self, text: str) -> None:
        """Text that belongs to the reply but comes in no event."""

    def end(self) -> None:
        """After the last event, or when something went wrong before it."""


class TextOutput:
    """Text as it is made; the last line is ended."""

    def __init__(self, colour: bool = False) -> None:
        self._colour = colour
        self._last = "\n"

    def prompt(self, text: str) -> None:
        if self._colour:
            sys.stdout.write(coloured(harmless(text), PROMPT_COLOUR))
            self._last = text or self._last
        else:
            self.text(text)

    def event(self, event: Event) -> None:
        self.text(event.text)

    def text(self, text: str) -> None:
        if text:
            write_text(text)
            self._last = text

    def end(self) -> None:
        if not self._last.endswith("\n"):
            self.text("\n")


class JsonOutput:
    """One JSON object a line: each token with its text, then the reason and the statistics."""

    def prompt(self, text: str) -> None:
        print_json({"prompt": text})

    def event(self, event: Event) -> None:
        made: dict[str, Any] = {"text": event.text, "token_id": event.token_id}
        if event.logprob is not None:
            made["logprob"] = event.logprob
            made["top_logprobs"] = [{"token_id": i, "logprob": p} for i, p in event.top_logprobs]
        if event.finish is not None:
            made = {"text": event.text, "finish": event.finish.value, "stopped_by": event.stopped_by}
            if event.stats is not None:
                stats = event.stats
                rates = {"prefill_rate": stats.prefill_rate, "decode_rate": stats.decode_rate}
                made["stats"] = {**asdict(stats), **rates}
        print_json(made)

    def text(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass


def how_it_went(event: Event) -> str:
    """The statistics of a generation in a line."""
    stats = event.stats
    assert stats is not None
    if event.finish is not None and event.finish.value == "cancelled" and not stats.generated_tokens:
        return f"stopped while the prompt of {stats.prompt_tokens} tokens was read"
    cached = f" ({stats.cached_tokens} cached)" if stats.cached_tokens else ""
    parts = [
        f"prompt {stats.prompt_tokens} tokens{cached}, {stats.prefill_rate:.1f} tok/s",
        f"generated {stats.generated_tokens}, {stats.decode_rate:.1f} tok/s",
        f"context {stats.context_used}/{stats.context_size}",
        f"seed {stats.seed}",
    ]
    if stats.first_token_seconds is not None:
        parts.insert(2, f"first token after {stats.first_token_seconds:.2f} s")
    if stats.context_shifts:
        parts.append(f"{stats.context_shifts} context shifts")
    return " · ".join(parts)
