"""Which kernel a product gets, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from wgllm.plan import Limits, step_widths
from wgllm.product_shape import (
    After,
    Before,
    Choice,
    Product,
    ShapeError,
    Target,
    candidates,
    default,
    most_partial_sums,
    shape,
    worth_fusing,
)
from wgllm.quant import format_by_name
from wgllm.wgsl import compose

Q4 = format_by_name("Q4_0")
CARD, CARD_WITHOUT = Target(subgroup=32), Target()
SOFTWARE, SOFTWARE_WITHOUT = Target(software=True, subgroup=8), Target(software=True)
TARGETS = (CARD, CARD_WITHOUT, SOFTWARE, SOFTWARE_WITHOUT)


@pytest.mark.parametrize(
    ("target", "rows", "inputs", "outputs", "want"),
    [
        (CARD, 1, 576, 192, Choice("matvec_wide", 32, 1, 1)),
        (CARD_WITHOUT, 3, 2048, 8192, Choice("matvec_wide", 64, 4, 4)),
        (CARD, 8, 8192, 2048, Choice("matvec_wide", 128, 4, 2)),
        (CARD, 9, 576, 1536, Choice("matmul", 64, 4, 32)),
        (CARD, 256, 2048, 2048, Choice("matmul", 128, 8, 64)),
        (CARD, 33, 8192, 64, Choice("matmul", 64, 4, 32, splits=8)),  # 4 tiles
        (CARD, 128, 2048, 192, Choice("matmul", 64, 4, 32, splits=2)),  # 24
        (CARD, 128, 2048, 288, Choice("matmul", 64, 4, 32)),  # 36
        (CARD, 33, 992, 64, Choice("matmul", 64, 4, 32)),  # of so few inputs
        (CARD, 33, 2016, 64, Choice("matmul", 64, 4, 32, splits=2)),
        (SOFTWARE, 33, 8192, 64, Choice("matmul_software", 16, 8, 4, True)),
        (SOFTWARE, 1, 576, 576, Choice("matmul_software", 16, 1, 4, True)),
        (SOFTWARE, 5, 576, 49152, Choice("matmul_software", 64, 8, 4, True)),
        (SOFTWARE_WITHOUT, 256, 576, 1536, Choice("matmul_software", 64, 4, 4)),
    ],
)
def test_defaults(target: Target, rows: int, inputs: int, outputs: int, want: Choice) -> None:
    assert default(Product(rows, inputs, outputs, Q4), target) == want


@pytest.mark.parametrize("target", TARGETS)
def test_other_widths_than_whole_groups(target: Target) -> None:
    odd = Product(1, 33, 7, format_by_name("F16"))
    assert default(odd, target).kernel == "matvec"
    assert {choice.kernel for choice in candidates(odd, target)} == {"matvec"}
    assert not worth_fusing(odd, target)


BEFORE: tuple[Before, ...] = ("plain", "normed")
AFTER: tuple[After, ...] = ("plain", "biased", "added", "biased_added", "gated_silu", "gated_gelu_tanh")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", AFTER)
def test_what_is_chosen_fits_the_default_limits(target: Target, before: Before, after: After) -> None:
    for rows, inputs, outputs in itertools.product((1, 2, 7, 33, 300), (32, 576, 11008), (1, 257, 200000)):
        product = Product(rows, inputs, outputs, Q4, before, after)
        chosen = default(product, target)
        assert chosen in candidates(product, target)
        made = shape(product, target)
        assert 1 <= made.groups <= 65535
        assert made.memory <= 16384
        assert made.entry == chosen.kernel
        assert made.features == (("subgroups",) if chosen.subgroups else ())


@pytest.mark.parametrize("target", TARGETS)
def test_every_candidate_composes(target: Target) -> None:
    product = Product(3, 64, 5, Q4, "normed", "gated_silu")
    norm = {"EPS": 1e-5, "OUT_WIDTH": 5}
    found = list(candidates(product, target))
    assert len(set(found)) == len(found) > 3
    for choice in found:
        made = shape(product, target, choice)
        constants = made.constants | Q4.layout(20).constants | norm
        assert choice.kernel in compose(*made.files, constants=constants, features=made.features).name


def test_bindings_follow_each_other() -> None:
    assert Product(1, 32, 1, Q4).bindings == ("weights", "x", "y")
    both = Product(1, 32, 1, Q4, "normed", "biased_added")
    assert both.bindings == ("weights", "x", "y", "norm", "bias", "residual")
    assert Product(1, 32, 1, Q4, "plain", "added").bindings == ("weights", "x", "y", "residual")


def test_groups_cover_the_product() -> None:
    product = Product(3, 64, 100, Q4)
    for choice, groups in (
        (Choice("matvec", 32), 3 * 4),
        (Choice("matvec_wide", 32, 2, 8), 2 * 13),
        (Choice("matmul", 64, 4, 32), 4),
        (Choice("matmul_software", 16, 1, 2), 3 * 4),
    ):
        assert shape(product, Target(), choice).groups == groups
    assert shape(Product(9, 64, 10**6, Q4), Target(), Choice("matvec_wide", 32, 1, 1)).groups == 65535


def test_memory() -> None:
    product = Product(3, 64, 100, Q4, "normed")
    wide = Choice("matvec_wide", 64, 2, 4)
    assert shape(product, Target(), wide).memory == 4 * 64 * 2 * 5 + 4 * 64
    subgroups = Choice("matvec_wide", 64, 2, 4, True)
    assert shape(product, CARD, subgroups).memory == 4 * 16 * 2 * 5 + 4 * 64
    assert shape(Product(3, 64, 9, Q4), CARD, Choice("matmul", 128, 8, 64)).memory == 16384


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        (Choice("matvec", 48), "48 is no power of two"),
        (Choice("matvec", 512), "a workgroup of 512"),
        (Choice("matvec_wide", 64, 1, 16), "a tile of 1 rows and 16 outputs"),
        (Choice("matvec_wide", 64, 8, 1), "a tile of 8 rows"),
        (Choice("matvec_wide", 16, 4, 8), "32 sums for 16 invocations"),
        (Choice("matvec_wide", 256, 4, 8), "32768 bytes of workgroup memory"),
        (Choice("matvec_wide", 64, 1, 1, True), "no subgroups"),
        (Choice("matmul", 64, 8, 32), "a tile of 32, 8 rows each"),
        (Choice("matmul_software", 64, 1, 8), "1 rows and 8 outputs each"),
        (Choice("matmul", 64, 4, 32, splits=3), "3 splits"),
        (Choice("matmul", 64, 4, 32, splits=16), "16 splits"),
        (Choice("matmul", 64, 4, 32, splits=4), "4 splits of 2 groups"),
        (Choice("matvec", splits=2), "2 splits"),
    ],
)
def test_what_is_refused(choice: Choice, problem: str) -> None:
    with pytest.raises(ShapeError, match=problem):
        shape(Product(3, 64, 5, Q4), Target(), choice)


def test_splits_are_two_dispatches() -> None:
    product = Product(40, 96, 70, Q4, "plain", "biased_added")
    whole, split = Choice("matmul", 64, 4, 32), Choice("matmul", 64, 4, 32, splits=2)
    made, one = shape(product, CARD, split), shape(product, CARD, whole)
    assert (one.bindings, one.scratch, one.reduce) == (product.bindings, 0, None)
    assert not {"SPLITS", "OUT_WIDTH", "OUT_FIRST"} & one.constants.keys()
    assert made.bindings == ("weights", "x", "partial_sums")
    assert made.files[-1] == "outputs/plain.wgsl"
    assert made.constants == one.constants | {"SPLITS": 2, "OUT_WIDTH": 70, "OUT_FIRST": 0}
    assert (made.groups, one.groups) == (12, 6)
    assert made.scratch == 4 * 2 * 40 * 70
    assert made.reduce is not None
    assert made.reduce.bindings == ("partial_sums", "y", "bias", "residual")
    assert made.reduce.files == ("kernels/matmul_reduce.wgsl", "outputs/biased_added.wgsl")
    assert made.reduce.groups == -(-40 * 70 // 64)
    few = Target(Limits(workgroups=5))
    assert made.reduce.constants["SPLITS"] == 2
    assert [shape(product, few, split).groups, shape(product, few, split).reduce.groups] == [5, 5]  # type: ignore[union-attr]


def splits_of(product: Product, target: Target) -> set[int]:
    return {choice.splits for choice in candidates(product, target)}


def test_splits_are_for_few_tiles_of_long_rows_on_cards() -> None:
    few = Product(64, 2048, 64, Q4)
    assert splits_of(few, CARD) == {1, 2, 4, 8}
    assert splits_of(few, SOFTWARE) == {1}
    assert splits_of(replace(few, inputs=1024), CARD) == {1, 2, 4}
    assert splits_of(replace(few, inputs=480), CARD) == {1}
    assert splits_of(replace(few, rows=512, outputs=2048), CARD) == {1}
    assert splits_of(replace(few, rows=8), CARD) == {1}
    assert splits_of(replace(few, after="gated_silu"), CARD) == {1}
    # Three tiles of each size, as they were, beside those in splits.
    assert sum(choice.splits == 1 for choice in candidates(few, CARD)) == 3


def test_splits_fall_away_where_a_device_holds_no_partial_sums() -> None:
    product = Product(64, 2048, 64, Q4)
    room = 4 * 64 * 64 * 4
    for limits in (Limits(binding=room), Limits(buffer=room)):
        target = Target(limits)
        assert splits_of(product, target) == {1, 2, 4}
        assert default(product, target).splits == 4
        with pytest.raises(ShapeError, match=f"{2 * room} bytes of partial sums"):
            shape(product, target, Choice("matmul", 64, 4, 32, splits=8))
    with pytest.raises(ShapeError, match="splits on a processor"):
        shape(product, SOFTWARE, Choice("matmul", 64, 4, 32, splits=2))


@pytest.mark.parametrize("limits", [Limits(), Limits(binding=1 << 20)])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(512, 2048, 64), (512, 2048, 576), (300, 8192, 2048), (33, 512, 100_000), (9, 1024, 1), (8, 4096, 64)],
)
def test_scratch_suffices_for_every_width_and_choice(
    limits: Limits, rows: int, inputs: int, outputs: int
) -> None:
    target = Target(limits)
    widest = Product(rows, inputs, outputs, Q4)
    most = most_partial_sums(widest, target)
    needed = [
        shape(product, target, choice).scratch
        for product in (replace(widest, rows=width) for width in step_widths(rows))
        for choice in candidates(product, target)
    ]
    assert most == max(needed)
    assert most <= min(limits.binding, 4 << 20)
    assert (most > 0) == (rows > 8 and outputs < 100_000)
    assert most_partial_sums(widest, SOFTWARE) == 0
    # What was measured may be anything; what is taken of it has room.
    for splits, width in itertools.product((2, 4, 8), step_widths(rows)):
        product = replace(widest, rows=width)
        known = Target(limits, choices={product.bucket: Choice("matmul", 64, 4, 32, splits=splits)})
        assert shape(product, known).scratch <= most


def test_products_that_no_shape_has() -> None:
    tile = Choice("matmul", 64, 4, 32)
    with pytest.raises(ShapeError, match="normed rows"):
        shape(Product(40, 64, 5, Q4, "normed"), CARD, tile)
    with pytest.raises(ShapeError, match="gated_silu outputs"):
        shape(Product(40, 64, 5, Q4, "plain", "gated_silu"), CARD, tile)
    with pytest.raises(ShapeError, match="not multiples of 4"):
        shape(Product(1, 33, 5, format_by_name("F32"), "normed"), CARD)
    with pytest.raises(ShapeError, match="not multiples of 32"):
        shape(Product(1, 48, 5, Q4), CARD)


def test_smaller_limits_of_workgroups() -> None:
    small = Target(Limits(workgroup_memory=8192, invocations=64))
    assert shape(Product(256, 2048, 2048, Q4), small).memory == 8192


def test_fusing_pays_for_few_rows_on_cards() -> None:
    few, many = (Product(rows, 64, 64, Q4, "normed") for rows in (8, 9))
    assert worth_fusing(few, CARD) and not worth_fusing(many, CARD)
