"""Decoding token by token, and stop strings in a stream of text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from wgllm.tokenizer.base import Tokenizer


class IncrementalDecoder:
    """Turns ids into text one at a time; the pieces joined are ``detokenize`` of all ids.

    A character is given out when its last byte has come; bytes that can't become one are U+FFFD at once.
    ``continuation``: other text comes before, so a leading space stays (see ``Tokenizer.detokenize``).
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = False, continuation: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = tokenizer.strips_space and not continuation
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete now that ``token_id`` has come; often one token's, sometimes empty."""
        if self._skip_special and self._tokenizer.is_control(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._strip and data:
            data = data.removeprefix(b" ")
            self._strip = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was cut."""
        return self._utf8.decode(b"", final=True)


class StopScanner:
    """Watches a stream of text for stop strings, which may begin in one piece and end in another.

    The first stop string to be complete counts; of several that end at the same place, the longest.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        # Knuth–Morris–Pratt: time linear in the text, whatever the stop strings.
        self._stops = [(stop, _borders(stop)) for stop in dict.fromkeys(stops) if stop]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that was found."""

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def push(self, text: str) -> tuple[str, bool]:
        """Text that can't be part of a stop string any more, and whether one was found.

        When one was, that text is the last.
        """
        if self.stopped:
            return "", True
        if not self._stops:
            return text, False
        buffer = self._held + text
        for at, char in enumerate(text, len(self._held)):
            found = 0
            for i, (stop, borders) in enumerate(self._stops):
                matched = self._matched[i]
                while matched and stop[matched] != char:
                    matched = borders[matched]
                if stop[matched] == char:
                    matched += 1
                if matched == len(stop):
                    found = max(found, matched)
                self._matched[i] = matched
            if found:
                self.found = buffer[at + 1 - found : at + 1]
                self._held = ""
                return buffer[: at + 1 - found], True
        keep = len(buffer) - max(self._matched)
        self._held = buffer[keep:]
        return buffer[:keep], False

    def flush(self) -> str:
        """What was held back, when the stream ends without a stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held


def _borders(stop: str) -> list[int]:
    """For each length m: the longest k < m with stop[:k] == stop[m - k : m]."""
    borders = [0, 0]
    k = 0
    for char in stop[1:]:
        while k and stop[k] != char:
            k = borders[k]
        if stop[k] == char:
            k += 1
        borders.append(k)
    return borders
