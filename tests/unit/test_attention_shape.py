"""How attention is cut: for every device's limits, and so that graphics cards are filled."""

from __future__ import annotations

from itertools import product

import pytest

from wgllm.attention_shape import (
    Attention,
    attention_shape,
    decode_memory,
    most_scratch,
    prefill_memory,
    state_snippet,
)
from wgllm.plan import Limits, PlanError
from wgllm.wgsl import compose


def node(
    rows: int = 1,
    heads: int = 9,
    kv_heads: int = 3,
    head_dim: int = 64,
    cells: int = 8192,
    seen: int = 2048,
    k_type: str = "f16",
    v_type: str = "f16",
    window: int | None = None,
) -> Attention:
    return Attention(rows, heads, kv_heads, head_dim, 2, cells, seen, k_type, v_type, 0.125, None, window)


def test_few_rows_are_decoded_and_many_are_tiled() -> None:
    assert attention_shape(node(1), Limits()).kernel == "attention_decode"
    assert attention_shape(node(256), Limits()).kernel == "attention_prefill"


def test_one_row_is_split_so_that_a_graphics_card_is_filled() -> None:
    shape = attention_shape(node(1), Limits())
    assert shape.constants["SPLIT"] == 128
    assert shape.groups == 3 * 2048 // 128
    assert shape.scratch == 9 * (2048 // 128) * (64 + 4)
    assert shape.reduce is not None
    assert shape.reduce.constants["SPLITS"] == 2048 // 128
    assert shape.reduce.groups == 9 * 16 // 64 + 1


def test_few_cells_are_not_split() -> None:
    shape = attention_shape(node(1, seen=64), Limits())
    assert (shape.groups, shape.scratch, shape.reduce) == (3, 0, None)


def test_software_has_larger_splits() -> None:
    shape = attention_shape(node(1), Limits(), software=True)
    assert shape.groups == 3 * 6
    assert shape.constants["LANES"] == 1
    assert shape.constants["SPLIT"] == 384  # a sixth, rounded up to 64
    assert attention_shape(node(8), Limits(), software=True).scratch == 0


def test_constants_are_those_of_the_kernels() -> None:
    for rows, k_type, v_type in product((1, 256), ("f16", "q8_0"), ("f32", "q4_0")):
        shape = attention_shape(node(rows, k_type=k_type, v_type=v_type, window=512), Limits())
        assert shape.snippets == (state_snippet(k_type, "k"), state_snippet(v_type, "v"))
        assert ("K_SCALES" in shape.constants, "V_SCALES" in shape.constants) == (
            k_type == "q8_0",
            v_type == "q4_0",
        )
        compose(f"kernels/{shape.kernel}.wgsl", *shape.snippets, constants=shape.constants)
        if shape.reduce is not None:
            compose("kernels/attention_reduce.wgsl", constants=shape.reduce.constants)


@pytest.mark.parametrize("software", [False, True])
@pytest.mark.parametrize("head_dim", [4, 20, 64, 96, 128, 192, 256, 512])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (8, 8), (32, 2), (71, 1), (128, 1)])
def test_limits_are_kept(heads: int, kv_heads: int, head_dim: int, software: bool) -> None:
    limits = Limits()
    for rows in (1, 7, 64, 1024):
        shape = attention_shape(node(rows, heads, kv_heads, head_dim), limits, software=software)
        assert 0 < shape.groups <= limits.workgroups
        if shape.kernel == "attention_prefill":
            assert prefill_memory(int(shape.constants["BLOCK"])) <= limits.workgroup_memory
            continue
        at_once, lanes, workgroup = (int(shape.constants[c]) for c in ("HEADS_AT_ONCE", "LANES", "WORKGROUP"))
        assert decode_memory(at_once, head_dim, lanes, workgroup) <= limits.workgroup_memory
        assert head_dim // 4 <= workgroup <= limits.invocations
        assert at_once <= heads // kv_heads


def test_parts_of_a_group_are_equal_where_they_can_be() -> None:
    constants = [attention_shape(node(1, heads, 1), Limits()).constants for heads in (4, 8, 12, 16)]
    assert [c["HEADS_AT_ONCE"] for c in constants] == [4, 8, 6, 8]


def test_heads_that_are_too_large_are_refused() -> None:
    with pytest.raises(PlanError, match="heads of 2048 numbers"):
        attention_shape(node(1, head_dim=2048), Limits())


@pytest.mark.parametrize("software", [False, True])
def test_scratch_suffices_for_every_width(software: bool) -> None:
    most = most_scratch(node(256, seen=8192), Limits(), software=software)
    for rows, seen in product((1, 2, 8, 16, 64, 256), (256, 1024, 8192)):
        assert attention_shape(node(rows, seen=seen), Limits(), software=software).scratch <= most
