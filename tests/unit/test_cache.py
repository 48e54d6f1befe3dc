"""The KV bookkeeping: sizes of rings, how far back a slot can go."""

from __future__ import annotations

import random

import pytest

from wgllm.cache import KVCache, cell_counts

FULL_AND_RING = {"cells": None, "cells.w32": 32}


def cache_with(ctx: int = 512, largest_step: int = 8) -> KVCache:
    return KVCache(FULL_AND_RING, cell_counts(FULL_AND_RING, ctx, largest_step, 1), ctx)


def write(cache: KVCache, n: int, step: int = 8) -> None:
    for at in range(0, n, step):
        tokens = [7] * min(step, n - at)
        cache.begin(0, len(tokens))
        cache.commit(0, tokens)


def test_a_ring_holds_its_window_and_the_largest_step() -> None:
    assert cell_counts(FULL_AND_RING, 512, 8, 2) == {"cells": 512, "cells.w32": 40, "slots": 2}


def test_a_ring_is_never_larger_than_the_context() -> None:
    assert cell_counts(FULL_AND_RING, 24, 8, 1)["cells.w32"] == 24


def test_truncation_is_exact_while_no_ring_has_wrapped() -> None:
    cache = cache_with()
    write(cache, 40)
    assert cache.truncate(0, 5) == 5
    assert cache.length(0) == 5


def test_truncation_goes_back_as_far_as_the_window_is_whole() -> None:
    cache = cache_with()
    write(cache, 100)  # the ring of 40 holds positions 60..99; a row at 91 sees 60..91
    assert cache.truncate(0, 91) == 91


def test_truncation_past_the_ring_keeps_nothing() -> None:
    cache = cache_with()
    write(cache, 100)
    assert cache.truncate(0, 90) == 0
    assert cache.length(0) == 0


def test_what_is_lost_stays_lost_after_going_back() -> None:
    cache = cache_with()
    write(cache, 100)
    assert cache.truncate(0, 95) == 95
    assert cache.truncate(0, 90) == 0


def test_a_step_that_was_begun_but_not_committed_can_be_dropped() -> None:
    cache = cache_with()
    write(cache, 96)
    cache.begin(0, 8)
    assert cache.truncate(0, cache.length(0)) == 96


def test_common_prefix_counts_equal_tokens_from_the_first() -> None:
    cache = cache_with()
    cache.begin(0, 4)
    cache.commit(0, [1, 2, 3, 4])
    assert [cache.common_prefix(0, t) for t in ([1, 2, 9], [1, 2, 3, 4, 5], [9], [])] == [2, 4, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_kept_is_really_there(seed: int) -> None:
    """Against a model of the ring itself: which position each cell holds."""
    rng = random.Random(seed)
    window, largest = 32, rng.choice([1, 3, 8])
    cache = cache_with(largest_step=largest)
    cells = window + largest
    ring: list[int] = [-1] * cells
    for _ in range(200):
        if rng.random() < 0.3:
            kept = cache.truncate(0, rng.randrange(cache.length(0) + 1))
            ring = [p if p < kept else -1 for p in ring]
            for position in range(max(0, kept - window + 1), kept):
                assert ring[position % cells] == position
        n = rng.randint(1, largest)
        if cache.length(0) + n <= 512:
            start = cache.length(0)
            cache.begin(0, n)
            for position in range(start, start + n):
                ring[position % cells] = position
            if rng.random() < 0.1:  # the step fails
                kept = cache.truncate(0, start)
                assert kept == start
                ring = [p if p < kept else -1 for p in ring]
            else:
                cache.commit(0, [0] * n)
