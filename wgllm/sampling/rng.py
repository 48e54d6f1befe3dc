"""The generator of samplers: four 32-bit words for each (seed, step), and what each word decides."""

from __future__ import annotations

import secrets

DRAW_WORD = 0
"""Which of the candidates is taken: the last step of the chain, and mirostat's."""
XTC_WORD = 1
"""Whether xtc acts. Words 2 and 3 are free."""

_MASK = 0xFFFFFFFF


def fresh_seed() -> int:
    """A random 32-bit seed."""
    return secrets.randbits(32)


def philox(seed: int, counter: int) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words of a 64-bit key and counter (Salmon et al. 2011, section 3.3)."""
    x0, x1, x2, x3 = counter & _MASK, counter >> 32 & _MASK, 0, 0
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        a, b = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ k0, b & _MASK, (a >> 32) ^ x3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return x0, x1, x2, x3


def uniform(seed: int, step: int, word: int = DRAW_WORD) -> float:
    """The number in [0, 1) of a word of step ``step``: a multiple of 2^-24 (exact in float32)."""
    return (philox(seed, step)[word] >> 8) * 2.0**-24
