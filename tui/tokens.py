"""A reply's tokens as the inspector shows them: what was probable, how surprising each is, and lines of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len, chop_cells

from wgllm.tui.text import clean

if TYPE_CHECKING:
    from wgllm.engine import Event

SURPRISE_BITS = (1.0, 3.0, 6.0)
"""From how many bits on a token is likely, unsure, surprising; below it is sure."""


@dataclass(frozen=True)
class Candidate:
    """A token that the model might have gone on with."""

    token_id: int
    text: str
    probability: float
    """The model's own, before any sampler."""
    kept: bool | None = None
    """Whether the samplers left it to draw from; None: not known."""
    chance: float | None = None
    """With what probability it was drawn then."""


@dataclass(frozen=True)
class Token:
    """A token of a reply, and what stood beside it."""

    text: str
    token_id: int
    logprob: float | None = None
    """Natural logarithm of its probability before all samplers; None: not known."""
    candidates: tuple[Candidate, ...] = ()
    """The most probable, best first; the token itself need not be among them."""
    n_kept: int | None = None
    """How many tokens the samplers left; None: not known."""

    @property
    def surprise(self) -> float | None:
        """In bits."""
        return None if self.logprob is None else max(0.0, -self.logprob / math.log(2))

    @property
    def level(self) -> int | None:
        """0 (sure) to 3 (surprising)."""
        surprise = self.surprise
        return None if surprise is None else sum(surprise >= bits for bits in SURPRISE_BITS)

    @property
    def choices(self) -> tuple[Candidate, ...]:
        """The candidates, with the token itself."""
        if self.logprob is None or any(c.token_id == self.token_id for c in self.candidates):
            return self.candidates
        known = any(c.kept is not None for c in self.candidates)
        own = Candidate(self.token_id, self.text, math.exp(self.logprob), True if known else None)
        return (*self.candidates, own)

    @property
    def rest(self) -> float:
        """The probability of all tokens that are not among ``choices``."""
        return max(0.0, 1 - math.fsum(c.probability for c in self.choices))

    @property
    def entropy(self) -> float:
        """In bits, at least: all that are not among ``choices`` count as one."""
        shares = [*(c.probability for c in self.choices), self.rest]
        return -math.fsum(p * math.log2(p) for p in shares if p > 0)


@dataclass(frozen=True)
class Branch:
    """Go on from a reply's tokens before ``token_index`` with another token."""

    token_index: int
    token_id: int


def tokens_of(events: Iterable[Event], text_of: Callable[[int], str]) -> list[Token]:
    """The tokens of a reply whose request asked for ``logprobs``; ``text_of`` gives the text of a token id."""
    tokens = []
    for event in events:
        if event.token_id is None:
            continue
        known, chances = event.n_kept is not None, dict(event.kept)
        shown = list(event.top_logprobs)
        if event.logprob is not None and event.token_id not in dict(shown):
            shown.append((event.token_id, event.logprob))
        candidates = tuple(
            Candidate(i, text_of(i), math.exp(logprob), i in chances if known else None, chances.get(i))
            for i, logprob in shown
        )
        tokens.append(Token(text_of(event.token_id), event.token_id, event.logprob, candidates, event.n_kept))
    return tokens


def visible(text: str) -> str:
    """A token's text in one line, with blanks that can be seen."""
    return clean(text).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "◌"


class Piece(NamedTuple):
    """What stands of a token in one line."""

    token: int
    start: int
    """The cell at which it begins."""
    width: int
    text: str


def lay_out(texts: Sequence[str], width: int) -> list[list[Piece]]:
    """Lines of at most ``width`` cells; a line's end is shown and ends the line."""
    lines: list[list[Piece]] = [[]]
    at = 0
    for token, text in enumerate(texts):
        text = clean(text).replace("\t", "⇥")
        rows = text.split("\n") if text else ["◌"]
        for i, row in enumerate(rows):
            row += "⏎" if i < len(rows) - 1 else ""
            for part in _parts(row, width):
                size = cell_len(part)
                if at + size > width and at:
                    lines.append([])
                    at = 0
                lines[-1].append(Piece(token, at, size, part))
                at += size
            if i < len(rows) - 1:
                lines.append([])
                at = 0
    return lines


def _parts(text: str, width: int) -> list[str]:
    """``text`` in pieces that fit into a line."""
    return [text] if 0 < cell_len(text) <= width else [part for part in chop_cells(text, width) if part]
