"""How fused attention is cut for a device: which kernel, its constants, how many workgroups, how much scratch.

Pure arithmetic. ``attention_decode`` reads keys and values once per row, for all query heads that share them;
``attention_prefill`` once per tile of rows. Where a step has too few pieces of work to fill a device the cells are
split, and ``attention_reduce`` puts the results of the splits together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from wgllm.plan import Limits, PlanError, step_widths
from wgllm.quant.state_words import state_layout
from wgllm.wgsl import Constant, Renamed

# From so many rows on attention_prefill is used. It makes fewer reads, but is slow where slots alternate.
_PREFILL_ROWS = 16
# Query heads of a KV head that attention_decode takes at once keep so many vectors in registers.
_MOST_HEADS = 8
# Workgroups that fill a device, and the fewest cells for which a workgroup is worth while: it is for graphics cards
# that work is split finely. On software adapters only the processor's cores want something to do.
_FILLED = {"attention_decode": 128, "attention_prefill": 128}
_LEAST_SPLIT = {"attention_decode": 128, "attention_prefill": 256}
_FILLED_SOFTWARE = 16
_LEAST_SPLIT_SOFTWARE = 256
_REDUCE_WORKGROUP = 64

AttentionKernel = Literal["attention_decode", "attention_prefill"]


@dataclass(frozen=True)
class Attention:
    """A node ``attention`` for one width of step."""

    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    slots: int
    cells: int
    """Of each slot and KV head."""
    seen: int
    """The first of them, which are looked at."""
    k_type: str
    v_type: str
    scale: float
    softcap: float | None = None
    window: int | None = None

    @property
    def group(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Reduce:
    """A dispatch of ``kernels/attention_reduce.wgsl``: scratch, y."""

    constants: Mapping[str, Constant]
    groups: int


@dataclass(frozen=True)
class AttentionShape:
    """A dispatch of q, k, v, cell_pos, pos, slot and y; or scratch and a second dispatch."""

    kernel: AttentionKernel
    """Entry point, and name of the file in ``kernels/``."""
    snippets: tuple[Renamed, ...]
    """What the kernel is composed with."""
    constants: Mapping[str, Constant]
    groups: int
    scratch: int
    """Numbers (float32) that are written instead of y; 0 where y is."""
    reduce: Reduce | None


def state_snippet(kv_type: str, letter: str) -> Renamed:
    """Access to a state of ``kv_type`` under the name ``letter``."""
    words = (("state", letter), ("state_at", f"{letter}_at"), ("state_scale", f"{letter}_scale"))
    return Renamed(f"kv/{kv_type}.wgsl", (*words, ("SCALES", f"{letter.upper()}_SCALES")))


def attention_shape(node: Attention, limits: Limits, *, software: bool = False) -> AttentionShape:
    """``software``: the device is a processor, which has few cores and waits long at barriers.

    Raises PlanError for heads that the kernels can't take.
    """
    kernel: AttentionKernel = "attention_prefill" if node.rows >= _PREFILL_ROWS else "attention_decode"
    of_kernel, pieces = (_prefill if kernel == "attention_prefill" else _decode)(node, limits, software)
    splits = -(-(_FILLED_SOFTWARE if software else _FILLED[kernel]) // pieces)
    split = max(_LEAST_SPLIT_SOFTWARE if software else _LEAST_SPLIT[kernel], -(-node.seen // splits))
    split = -(-split // 64) * 64
    splits = -(-node.seen // split)
    constants: dict[str, Constant] = {
        "ROWS": node.rows,
        "HEADS": node.heads,
        "KV_HEADS": node.kv_heads,
        "HEAD_DIM": node.head_dim,
        "CELLS": node.cells,
        "SEEN": node.seen,
        "SPLIT": split,
        "SCALE": node.scale,
        "SOFTCAP": node.softcap or 0.0,
        "WINDOW": node.window or 0,
        **of_kernel,
    }
    for letter, kv_type in (("K", node.k_type), ("V", node.v_type)):
        layout = state_layout(kv_type, node.slots * node.kv_heads * node.cells, node.head_dim)
        if layout.scales_per_cell:
            constants[f"{letter}_SCALES"] = layout.scales
    return AttentionShape(
        kernel,
        (state_snippet(node.k_type, "k"), state_snippet(node.v_type, "v")),
        constants,
        min(pieces * splits, limits.workgroups),
        node.rows * node.heads * splits * (node.head_dim + 4) if splits > 1 else 0,
        _reduce(node, splits, limits) if splits > 1 else None,
    )


def most_scratch(node: Attention, limits: Limits, *, software: bool = False) -> int:
    """Numbers of scratch that suffice for all widths (powers of two) up to those of ``node``.

    Fewer rows may need more: their cells are split more finely.
    """
    return max(
        attention_shape(replace(node, rows=rows, seen=seen), limits, software=software).scratch
        for rows in step_widths(node.rows)
        for seen in step_widths(node.seen)
    )


def _decode(node: Attention, limits: Limits, software: bool) -> tuple[dict[str, Constant], int]:
    """Constants, and the pieces of work of each split."""
    quads = node.head_dim // 4
    # Invocations of a software adapter's workgroup wait for each other: few, and none for parts of a product.
    lanes, workgroup = (1, 16) if software else (4, 64)
    while workgroup < quads:
        workgroup *= 2
    least = decode_memory(1, node.head_dim, lanes, workgroup)
    if workgroup > limits.invocations or least > limits.workgroup_memory:
        raise PlanError(f"attention has no shader for heads of {node.head_dim} numbers")
    at_once = min(node.group, _MOST_HEADS)
    while decode_memory(at_once, node.head_dim, lanes, workgroup) > limits.workgroup_memory:
        at_once -= 1
    parts = -(-node.group // at_once)
    at_once = -(-node.group // parts)
    constants: dict[str, Constant] = {"HEADS_AT_ONCE": at_once, "LANES": lanes, "WORKGROUP": workgroup}
    return constants, node.rows * node.kv_heads * parts


def decode_memory(heads_at_once: int, head_dim: int, lanes: int, workgroup: int) -> int:
    """Bytes of workgroup memory of ``attention_decode``."""
    of_a_head = (
        4 * head_dim  # queries
        + 16 * workgroup  # scores
        + 16 * (workgroup // lanes)  # weights
        + 4 * (8 + 2)  # maxima, largest, factors
    )
    return (
        heads_at_once * of_a_head + 20 * workgroup + 16 + 7 * 15
    )  # stripes; seen_cells; what alignment may add


def _prefill(node: Attention, limits: Limits, software: bool) -> tuple[dict[str, Constant], int]:
    # An invocation keeps `block` numbers for every 8 of a head.
    block = 4 if node.head_dim <= 128 else 2 if node.head_dim <= 256 else 1
    while prefill_memory(block) > limits.workgroup_memory or limits.invocations < 64:
        if block == 1:
            raise PlanError("attention has no shader for so little workgroup memory")
        block //= 2
    tiles = -(-node.rows * node.group // (8 * block))
    return {"BLOCK": block}, tiles * node.kv_heads


def prefill_memory(block: int) -> int:
    """Bytes of workgroup memory of ``attention_prefill``."""
    queries = 8 * block
    staged = 16 * 8 * (queries + 1 + 33)
    return staged + 16 * queries * 9 + 4 * queries + 2 * 4 * 64 + 16 + 6 * 15


def _reduce(node: Attention, splits: int, limits: Limits) -> Reduce:
    constants: dict[str, Constant] = {
        "ROWS": node.rows,
        "HEADS": node.heads,
        "HEAD_DIM": node.head_dim,
        "SPLITS": splits,
        "WORKGROUP": _REDUCE_WORKGROUP,
    }
    quads = node.rows * node.heads * node.head_dim // 4
    return Reduce(constants, min(-(-quads // _REDUCE_WORKGROUP), limits.workgroups))
