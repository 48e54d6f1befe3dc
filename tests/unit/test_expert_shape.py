"""How products of experts are cut into tiles."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from wgllm.expert_shape import Chosen, choose, tile_rows
from wgllm.plan import Limits
from wgllm.product_shape import Choice, Product, Target, shape
from wgllm.quant import format_by_name

CARD, SOFTWARE, SHARED = Target(), Target(software=True), Target(software=True, subgroup=8)
Q4 = format_by_name("Q4_0")


def test_there_is_room_for_all_tiles_whoever_is_chosen() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        experts = int(rng.integers(1, 40))
        chosen = Chosen(int(rng.integers(1, 60)), int(rng.integers(1, experts + 1)), experts)
        tile = int(rng.choice([1, 2, 4, 8, 32, 64]))
        # Anybody may be liked: evenly, or a few by all.
        likes = rng.random((chosen.rows, experts)) + rng.integers(0, 2) * np.arange(experts)
        counts = Counter(np.argsort(likes)[:, : chosen.count].reshape(-1).tolist())
        assert sum(-(-n // tile) for n in counts.values()) <= chosen.tiles(tile)
        assert len(counts) <= chosen.most_read
    # As many as can be.
    assert Chosen(2, 3, 6).tiles(4) == 6 and Chosen(9, 1, 2).tiles(4) == 3


@pytest.mark.parametrize(
    ("target", "rows", "count", "experts", "expected"),
    [
        (CARD, 1, 8, 128, 1),
        (CARD, 8, 2, 8, 1),
        (CARD, 16, 8, 128, 1),  # one row for each expert
        (CARD, 32, 8, 128, 32),
        (CARD, 256, 8, 128, 32),
        (CARD, 256, 2, 8, 64),
        (Target(Limits(workgroup_memory=8192)), 256, 2, 8, 32),
        (SOFTWARE, 1, 2, 8, 1),
        (SOFTWARE, 2, 2, 8, 1),
        (SOFTWARE, 8, 2, 8, 2),
        (SOFTWARE, 32, 2, 8, 4),
        (SHARED, 32, 2, 8, 8),
        (SHARED, 32, 8, 128, 2),
    ],
)
def test_rows_of_tiles(target: Target, rows: int, count: int, experts: int, expected: int) -> None:
    assert tile_rows(Chosen(rows, count, experts), 2048, target) == expected
    assert tile_rows(Chosen(rows, count, experts), 2050, target) == 1


@pytest.mark.parametrize("target", [CARD, SOFTWARE, SHARED], ids=["card", "software", "shared"])
@pytest.mark.parametrize("inputs", [20, 768, 14336])
def test_every_choice_is_one_that_the_product_can_have(target: Target, inputs: int) -> None:
    fmt = format_by_name("F32") if inputs % 32 else Q4
    for rows in (1, 2, 8, 9, 256):
        for count, experts in ((1, 1), (2, 8), (8, 128)):
            chosen = Chosen(rows, count, experts)
            tile = tile_rows(chosen, inputs, target)
            for after in ("plain", "gated_silu") if tile == 1 or target.software else ("plain",):
                product = Product(chosen.tiles(tile) * tile, inputs, 768, fmt, after=after)  # type: ignore[arg-type]
                choice = choose(product, tile, target)
                made = shape(product, target, choice, "sorted" if tile > 1 else "chosen")
                assert made.bindings[3] == ("sorted" if tile > 1 else "ids") and made.groups >= 1
                of_tile = choice.outputs if choice.kernel == "matmul" else choice.rows
                assert choice.kernel == "matvec" or of_tile == tile


def test_a_sum_is_one_row_at_a_time() -> None:
    for target in (CARD, SOFTWARE, SHARED):
        product = Product(8, 8 * 768, 2048, Q4, "weighted", "added")
        choice = choose(product, 1, target)
        assert choice.rows == 1
        made = shape(product, target, choice, "summed")
        assert made.bindings == ("weights", "x", "y", "ids", "shares", "residual")
    assert choose(Product(1, 6144, 2048, Q4), 1, CARD) == Choice("matvec_wide", 64, 1, 2)
