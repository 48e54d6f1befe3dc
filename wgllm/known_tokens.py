"""Replies in a prompt as the tokens that they were made of, so that what the cache holds of them is used again.

What a model samples is not always how a tokenizer would write the same text, and from the first token that differs
everything is read anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from wgllm.tokenizer.base import Tokenizer

_CONTROL = b"\xff"
"""Stands for a special token: no UTF-8 has this byte, so that no text is found across one."""


def with_known_tokens(
    prompt: Sequence[int], said: Sequence[tuple[str, Sequence[int]]], tokenizer: Tokenizer
) -> list[int]:
    """``prompt`` with the tokens of replies in place of tokens that spell the same bytes.

    ``said`` has for each message, in their order, its text and the ids that it was made of, none where they are not
    known. The bytes that the tokens spell stay the same, and so does every special token. Ids that the vocabulary
    does not have, special tokens among the ids, or what is not found as a run of whole tokens changes nothing.
    """
    if not any(ids for _, ids in said):
        return list(prompt)
    special = frozenset(tokenizer.special_tokens.values())
    pieces = [_CONTROL if i in special else tokenizer.token_bytes(i) for i in prompt]
    ends = [0, *accumulate(map(len, pieces))]
    """Where each token begins, and at last where the prompt ends."""
    spelled = b"".join(pieces)
    made: list[int] = []
    taken = position = 0
    for text, ids in said:
        known = _spelled(ids, tokenizer, special)
        run = _run(spelled, known, position, ends) if known else None
        if run is None:
            raw = text.strip().encode("utf-8", "replace")
            found = spelled.find(raw, position)
            position = position if found < 0 else found + len(raw)
            continue
        first, last = run
        made += [*prompt[taken:first], *ids]
        taken, position = last, ends[last]
    return [*made, *prompt[taken:]]


def _spelled(ids: Sequence[int], tokenizer: Tokenizer, special: frozenset[int]) -> bytes:
    """What they spell; empty where they cannot stand in a prompt."""
    if any(i in special or not 0 <= i < tokenizer.vocab_size for i in ids):
        return b""
    spelled = b"".join(map(tokenizer.token_bytes, ids))
    return b"" if _CONTROL in spelled else spelled


def _run(spelled: bytes, known: bytes, position: int, ends: Sequence[int]) -> tuple[int, int] | None:
    """The first run of whole tokens from ``position`` on that spells ``known``: its first token, and that after it."""
    while (position := spelled.find(known, position)) >= 0:
        first, last = bisect_left(ends, position), bisect_left(ends, position + len(known))
        if ends[first] == position and ends[last] == position + len(known):
            return first, last
        position += 1
    return None
