"""What dry needs to know: repetitions at the end of a text, and the tokens across which there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from wgllm.sampling.candidates import Ints
from wgllm.tokenizer import Tokenizer

Breakers = Mapping[int, Sequence[tuple[int, ...]]]
"""First token → what may follow it to make a breaker; () where the token is or holds one by itself."""

# llama.cpp's bounds: of a breaker in bytes, of what follows its first token.
_MAX_BYTES = 40
_MAX_TAIL = 20

_known: WeakKeyDictionary[Tokenizer, dict[tuple[str, ...], Breakers]] = WeakKeyDictionary()


def breaker_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Breakers:
    """The token sequences that hold one of ``texts``: tokens with the text inside, and tokens that end with its
    beginning, followed by the rest as it is tokenized. Looks through the vocabulary once."""
    cache = _known.setdefault(tokenizer, {})
    key = tuple(texts)
    if key not in cache:
        found: dict[int, list[tuple[int, ...]]] = {}
        needles = [text.encode("utf-8", "replace")[:_MAX_BYTES] for text in texts]
        for token in range(tokenizer.vocab_size):
            data = tokenizer.token_bytes(token)
            for needle in needles:
                for tail in _tails(data, needle, tokenizer):
                    if tail not in found.setdefault(token, []):
                        found[token].append(tail)
        cache[key] = found
    return cache[key]


def _tails(data: bytes, needle: bytes, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    if needle in data:
        return [()]
    tails = []
    for n in range(1, min(len(needle) - 1, len(data)) + 1):
        if data.endswith(needle[:n]):
            try:
                rest = needle[n:].decode()
            except UnicodeDecodeError:  # cut inside a character: no text that one could tokenize
                continue
            tails.append(tuple(tokenizer.tokenize(rest, add_special=False)[:_MAX_TAIL]))
    return tails


def repetitions(window: Ints, shortest: int, longest: int, breakers: Breakers) -> tuple[Ints, Ints]:
    """Tokens (ascending) that would go on with a repetition, and its length: how many of the window's last tokens
    stand before an earlier place of that token, from ``shortest`` to ``longest`` and back to the last breaker."""
    n = len(window)
    nothing = np.empty(0, np.int64)
    longest = min(longest, _since_breaker(window, breakers))
    if n <= shortest or longest < shortest:
        return nothing, nothing
    lengths = np.zeros(n - 1, np.int64)
    ends = np.arange(n - 1)  # where an earlier copy of the last ``length`` tokens ends
    length = 0
    while len(ends) and length < longest:
        ends = ends[ends >= length]
        ends = ends[window[ends - length] == window[n - 1 - length]]
        length += 1
        lengths[ends] = length
    repeats = lengths >= shortest
    tokens, which = np.unique(window[1:][repeats], return_inverse=True)
    longest_of = np.zeros(len(tokens), np.int64)
    np.maximum.at(longest_of, which, lengths[repeats])
    spared = [any(tail == () for tail in breakers.get(t, ())) for t in tokens.tolist()]
    keep = ~np.array(spared, bool)
    return tokens[keep], longest_of[keep]


def _since_breaker(window: Ints, breakers: Breakers) -> int:
    """How many tokens stand after the last breaker (its own not counted)."""
    tokens = window.tolist()
    for at in range(len(tokens) - 1, -1, -1):
        after = tokens[at + 1 :] if tokens[at] in breakers else []
        fits = [len(t) for t in breakers.get(tokens[at], ()) if tuple(after[: len(t)]) == t]
        if fits:
            return len(after) - max(fits)
    return len(tokens)
