"""Fused attention beside NumPy's, for both kernels, whole and split, on few and many workgroups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.gpu import FEW_WORKGROUPS, Gpu
from tests.kernels.test_kv import from_words, random, to_words
from tests.tolerances import KERNEL_ATTENTION
from wgllm.attention_shape import Attention, attention_shape, state_snippet
from wgllm.backends import numpy as reference
from wgllm.kv_types import KV_TYPES
from wgllm.plan import Limits
from wgllm.quant.base import F32
from wgllm.quant.state_words import state_layout
from wgllm.wgsl import Constant, compose

Ints = NDArray[np.int32]

DECODE: Mapping[str, Constant] = {"HEADS_AT_ONCE": 3}
DECODE_SOFTWARE: Mapping[str, Constant] = {"HEADS_AT_ONCE": 3, "LANES": 1, "WORKGROUP": 16}
PREFILL: Mapping[str, Constant] = {"BLOCK": 4}
PREFILL_NARROW: Mapping[str, Constant] = {"BLOCK": 2}
KERNELS = [
    ("attention_decode", DECODE),
    ("attention_decode", DECODE_SOFTWARE),
    ("attention_prefill", PREFILL),
    ("attention_prefill", PREFILL_NARROW),
]


@dataclass
class Case:
    """Rows ``pos`` of the slots ``slot``; every slot holds all positions up to its last row's."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    cells: int = 40
    k_type: str = "f32"
    v_type: str = "f32"
    pos: Ints = field(default_factory=lambda: np.arange(30, 40, dtype=np.int32))
    slot: Ints | None = None
    softcap: float | None = None
    window: int | None = None
    size: float = 3.0
    """Of the queries."""

    def __post_init__(self) -> None:
        slot = np.zeros_like(self.pos) if self.slot is None else self.slot
        self.rows = slot
        self.cell_pos = np.full((int(slot.max()) + 1, self.cells), -1, np.int32)
        for s in range(len(self.cell_pos)):
            last = int(self.pos[slot == s].max(initial=-1))
            held = np.arange(max(0, last + 1 - self.cells), last + 1, dtype=np.int32)
            self.cell_pos[s, held % self.cells] = held
        shape = (len(self.cell_pos), self.kv_heads, self.cells, self.head_dim)
        self.k, self.v = to_words(random(*shape), self.k_type), to_words(random(*shape) + 1, self.v_type)
        self.keys, self.values = (
            from_words(self.k, self.k_type, shape),
            from_words(self.v, self.v_type, shape),
        )
        self.q = random(len(self.pos), self.heads, self.head_dim, size=self.size)
        self.scale = self.head_dim**-0.5
        self.seen = min(self.cells, int(self.pos.max()) + 1)

    def node(self) -> Attention:
        return Attention(
            len(self.pos), self.heads, self.kv_heads, self.head_dim, len(self.cell_pos), self.cells, self.seen,
            self.k_type, self.v_type, self.scale, self.softcap, self.window,
        )  # fmt: skip

    def want(self) -> F32:
        """Row by row: the reference wants the rows of a slot in order."""
        rows = [
            reference.attention(
                self.q[i : i + 1], self.keys, self.values, self.cell_pos, self.pos[i : i + 1], self.rows[i : i + 1],
                scale=self.scale, softcap=self.softcap, window=self.window,
            )
            for i in np.flatnonzero(self.pos >= 0)
        ]  # fmt: skip
        return np.concatenate(rows)

    def run(
        self, gpu: Gpu, kernel: str, extra: Mapping[str, Constant], split: int | None, groups: int
    ) -> F32:
        """All rows, padding too."""
        split = self.seen if split is None else split
        splits = -(-self.seen // split)
        constants: dict[str, Constant] = {
            "ROWS": len(self.pos), "HEADS": self.heads, "KV_HEADS": self.kv_heads, "HEAD_DIM": self.head_dim,
            "CELLS": self.cells, "SEEN": self.seen, "SPLIT": split, "SCALE": self.scale,
            "SOFTCAP": self.softcap or 0.0, "WINDOW": self.window or 0, **extra,
        }  # fmt: skip
        for letter, kv_type in (("K", self.k_type), ("V", self.v_type)):
            if kv_type.startswith("q"):
                n = len(self.cell_pos) * self.kv_heads * self.cells
                constants[f"{letter}_SCALES"] = state_layout(kv_type, n, self.head_dim).scales
        snippets = state_snippet(self.k_type, "k"), state_snippet(self.v_type, "v")
        source = compose(f"kernels/{kernel}.wgsl", *snippets, constants=constants)
        inputs = [self.q, self.k, self.v, self.cell_pos, self.pos, self.rows]
        y = np.full_like(self.q, np.nan)
        if splits > 1:
            parts = np.full((*self.q.shape[:2], splits, self.head_dim + 4), np.nan, np.float32)
            parts = gpu.run(source, kernel, [*inputs, parts], groups=groups).view(np.float32)
            sizes = {"ROWS": len(y), "HEADS": self.heads, "HEAD_DIM": self.head_dim, "SPLITS": splits}
            source = compose("kernels/attention_reduce.wgsl", constants=sizes)
            got = gpu.run(source, "attention_reduce", [parts, y], groups=groups)
        else:
            got = gpu.run(source, kernel, [*inputs, y], groups=groups)
        return got.view(np.float32).reshape(y.shape)

    def check(
        self,
        gpu: Gpu,
        kernel: str,
        extra: Mapping[str, Constant],
        split: int | None = None,
        groups: int = FEW_WORKGROUPS,
    ) -> None:
        got = self.run(gpu, kernel, extra, split, groups)
        assert np.isfinite(got).all()
        error = np.abs(got[self.pos >= 0] - self.want()).max() / np.abs(self.values).max()
        assert error <= KERNEL_ATTENTION


def ints(*numbers: int) -> Ints:
    return np.array(numbers, np.int32)


@pytest.mark.parametrize(("k_type", "v_type"), list(product(KV_TYPES, KV_TYPES)))
@pytest.mark.parametrize(("kernel", "extra"), [KERNELS[0], KERNELS[2]])
def test_kv_types(gpu: Gpu, kernel: str, extra: Mapping[str, Constant], k_type: str, v_type: str) -> None:
    Case(head_dim=96, k_type=k_type, v_type=v_type).check(gpu, kernel, extra, split=33)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(9, 3, 64), (6, 2, 96), (4, 1, 128), (8, 8, 4), (32, 8, 20), (4, 1, 256), (7, 1, 4), (1, 1, 64)],
)
@pytest.mark.parametrize(("kernel", "extra"), KERNELS)
def test_heads(
    gpu: Gpu, kernel: str, extra: Mapping[str, Constant], heads: int, kv_heads: int, head_dim: int
) -> None:
    extra = dict(extra)
    if kernel == "attention_decode":
        extra["WORKGROUP"] = max(int(extra.get("WORKGROUP", 64)), 64 if head_dim > 64 else 16)
    elif head_dim > 128:
        extra["BLOCK"] = 2
    case = Case(heads, kv_heads, head_dim, pos=np.arange(25, 36, dtype=np.int32))
    case.check(gpu, kernel, extra, split=20, groups=200)


@pytest.mark.parametrize("seen", [1, 7, 33, 257, 600])
@pytest.mark.parametrize(("kernel", "extra"), KERNELS)
def test_counts_of_cells(gpu: Gpu, kernel: str, extra: Mapping[str, Constant], seen: int) -> None:
    pos = np.arange(max(0, seen - 20), seen, dtype=np.int32)
    case = Case(6, 2, 20, cells=610, k_type="f16", v_type="f16", pos=pos)
    for split in (None, 1 + seen // 5):
        case.check(gpu, kernel, extra, split=split)
    Case(6, 2, 20, cells=610, pos=ints(seen - 1)).check(gpu, kernel, extra, groups=50)


@pytest.mark.parametrize(
    ("window", "cells", "last"), [(None, 45, 44), (8, 45, 44), (8, 18, 100), (40, 50, 119)]
)
@pytest.mark.parametrize(("kernel", "extra"), KERNELS)
def test_windows_and_rings(
    gpu: Gpu, kernel: str, extra: Mapping[str, Constant], window: int | None, cells: int, last: int
) -> None:
    pos = np.arange(last - 9, last + 1, dtype=np.int32)
    case = Case(6, 2, cells=cells, pos=pos, window=window)
    case.check(gpu, kernel, extra, split=7 if window == 8 else None)


SLOTS = [
    (ints(5, 6, 7, 0, 1, 39, 38, 20), ints(0, 0, 0, 2, 2, 1, 1, 3)),  # runs
    (ints(5, 39, 6, 30, 7, 31, 0), ints(0, 1, 0, 2, 0, 2, 3)),  # in turns
    (np.arange(40, dtype=np.int32) % 20, np.arange(40, dtype=np.int32) // 20),
    (ints(17, 18, 19, -1, -1, -1, -1, -1), ints(1, 1, 1, 0, 0, 0, 0, 0)),  # padding
    (ints(-1, 3, -1, -1), ints(0, 0, 0, 0)),
]


@pytest.mark.parametrize(("pos", "slot"), SLOTS)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("kernel", "extra"), KERNELS)
def test_slots_and_padding(
    gpu: Gpu, kernel: str, extra: Mapping[str, Constant], window: int | None, pos: Ints, slot: Ints
) -> None:
    Case(pos=pos, slot=slot, window=window).check(gpu, kernel, extra, split=16 if window else None)


@pytest.mark.parametrize(("kernel", "extra"), KERNELS)
def test_softcap(gpu: Gpu, kernel: str, extra: Mapping[str, Constant]) -> None:
    Case(softcap=20.0, size=30).check(gpu, kernel, extra)
    Case(softcap=0.5, size=3000).check(gpu, kernel, extra, split=9)


@pytest.mark.parametrize(("kernel", "extra"), KERNELS)
def test_scores_that_differ_by_ten_thousands(gpu: Gpu, kernel: str, extra: Mapping[str, Constant]) -> None:
    case = Case(size=1e4)
    scores = np.einsum("rhd,hcd->rhc", case.q, np.repeat(case.keys[0], 2, axis=0)) * case.scale
    assert np.ptp(scores) > 1e4
    case.check(gpu, kernel, extra)
    case.check(gpu, kernel, extra, split=5)


@pytest.mark.parametrize(("kernel", "extra"), KERNELS)
@pytest.mark.parametrize("split", [None, 9])
def test_a_row_that_sees_nothing_gets_zeros(
    gpu: Gpu, kernel: str, extra: Mapping[str, Constant], split: int | None
) -> None:
    case = Case()
    case.cell_pos[:] = -1
    assert not case.run(gpu, kernel, extra, split, FEW_WORKGROUPS).any()


@pytest.mark.parametrize("software", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim"),
    [
        (1, 9, 3, 64),
        (5, 71, 1, 64),
        (40, 8, 2, 96),
        (2, 8, 1, 256),
        (20, 2, 1, 256),
        (2, 4, 2, 512),
        (17, 2, 1, 512),
    ],
)
def test_what_attention_shape_chooses(
    gpu: Gpu, rows: int, heads: int, kv_heads: int, head_dim: int, software: bool
) -> None:
    pos = np.arange(530 - rows, 530, dtype=np.int32)
    case = Case(heads, kv_heads, head_dim, 600, "q8_0", "f16", pos)
    shape = attention_shape(case.node(), Limits(), software=software)
    assert (shape.reduce is not None) == (shape.scratch > 0)
    source = compose(f"kernels/{shape.kernel}.wgsl", *shape.snippets, constants=shape.constants)
    inputs = [case.q, case.k, case.v, case.cell_pos, case.pos, case.rows]
    y = np.zeros_like(case.q)
    out = np.zeros(shape.scratch, np.float32) if shape.scratch else y
    got = gpu.run(source, shape.kernel, [*inputs, out], groups=shape.groups)
    if shape.reduce is not None:
        source = compose("kernels/attention_reduce.wgsl", constants=shape.reduce.constants)
        got = gpu.run(source, "attention_reduce", [got, y], groups=shape.reduce.groups)
    error = np.abs(got.view(np.float32).reshape(y.shape) - case.want()).max() / np.abs(case.values).max()
    assert error <= KERNEL_ATTENTION
