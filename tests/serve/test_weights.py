"""Packed weights in pieces: the right bytes and hashes, packed once, and never much of them in memory."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.in_thread import PATIENCE
from tests.tiny import CTX, tiny
from wgllm import models
from wgllm.backends import fills as fills_module
from wgllm.backends.fills import fill_bytes, packed_file
from wgllm.cache import cell_counts
from wgllm.formats.model_file import TensorView
from wgllm.lowering import PlanOptions, lower, prepared
from wgllm.models.opening import open_model
from wgllm.plan import Fill, Limits, Plan, Region, Rows
from wgllm.quant import format_by_name
from wgllm.serve import weights as weights_module
from wgllm.serve.weights import PackedFile, PieceStore, cut

# Formats in planes, norms and biases, rope's factors, experts in shards, rings.
MODELS = ["llama-q.q6_k", "qwen2.f32", "phi3-longrope.f16", "qwen3_moe.q8_0", "gemma3.f32"]


def planned(
    path: Path, *, quantize: str | None = None, **limits: int
) -> tuple[Plan, Mapping[str, TensorView]]:
    built = models.build(open_model(path, quantize=quantize), CTX)
    sizes = cell_counts(built.graph.windows, CTX, 16, slots=1)
    options = PlanOptions(sizes, CTX, 16, limits=Limits(**limits), host="tint")
    return lower(prepared(built.graph), options), built.weights


def packed(plan: Plan, weights: Mapping[str, TensorView]) -> bytes:
    return b"".join(piece.tobytes() for piece in packed_file(plan, weights))


def path_of(name: str) -> Path:
    return tiny(name).path


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("most", [1000, 1 << 16, 8 << 20])
def test_pieces_joined_are_the_packed_file(name: str, most: int) -> None:
    plan, weights = planned(path_of(name))
    file = PackedFile(plan.fills, weights, name, PieceStore(piece=most))
    whole = packed(plan, weights)
    assert file.size == len(whole)
    at = 0
    for piece in file.pieces:
        data = file.data(piece)
        assert (piece.at, piece.size, len(data)) == (at, len(data), len(data))
        assert 0 < piece.size <= most
        assert data == whole[at : at + piece.size]
        assert file.sha256(piece) == hashlib.sha256(data).hexdigest()
        at += piece.size
    assert at == len(whole)


def test_pieces_of_shards_and_of_what_is_quantized_as_it_is_read() -> None:
    for quantize, limits in ((None, {"binding": 1 << 16}), ("q4_0", {}), ("q8_0", {"binding": 1 << 16})):
        plan, weights = planned(path_of("qwen2.f32"), quantize=quantize, **limits)
        file = PackedFile(plan.fills, weights, "", PieceStore(piece=5000))
        assert b"".join(map(file.data, file.pieces)) == packed(plan, weights)


@pytest.mark.parametrize("name", MODELS)
def test_any_bytes_of_a_fill_are_read_alone(name: str) -> None:
    plan, weights = planned(path_of(name))
    rng = np.random.default_rng(0)
    seen = set()
    for fill, whole in zip(plan.fills, packed_file(plan, weights), strict=True):
        if (fill.kind, len(fill.rows)) in seen and rng.random() < 0.8:
            continue
        seen.add((fill.kind, len(fill.rows)))
        for _ in range(4):
            start, stop = sorted(rng.integers(0, whole.size + 1, 2).tolist())
            np.testing.assert_array_equal(fill_bytes(fill, weights, start, stop), whole[start:stop])
    assert {"packed", "numbers", "rope"} <= {kind for kind, _ in seen}


def test_a_rope_table_in_pieces_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, weights = planned(path_of("phi3-longrope.f16"))
    rope = next(fill for fill in plan.fills if fill.kind == "rope")
    whole = fill_bytes(rope, weights, 0, rope.region.size)
    monkeypatch.setattr(fills_module, "_PIECE", 4 * rope.dim * 7)
    pieces = list(fills_module.fill_pieces(rope, weights))
    assert len(pieces) == -(-rope.positions // 7)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), whole[: 4 * CTX * rope.dim])


@given(st.lists(st.integers(1, 300), max_size=12), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_a_file_is_cut_into_pieces_without_gaps(sizes: list[int], most: int) -> None:
    sizes, most = [16 * n for n in sizes], 16 * most
    fills = [Fill(Region(0, 0, size), "numbers", (Rows(str(i), 0, 1),)) for i, size in enumerate(sizes)]
    pieces = cut(fills, most)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    at = 0
    for piece in pieces:
        assert piece.at == at and 0 < piece.size <= most
        assert starts[piece.fill] + piece.offset == at
        assert sum(part.stop - part.start for part in piece.parts) == piece.size
        at += piece.size
    assert at == sum(sizes)
    # Every byte of every fill once, in order.
    whole = [
        (part.fill.rows[0].tensor, b) for p in pieces for part in p.parts for b in (part.start, part.stop)
    ]
    assert {tensor for tensor, _ in whole} == {str(i) for i in range(len(sizes))}


def test_the_same_rows_elsewhere_are_the_same_piece() -> None:
    plan, weights = planned(path_of("qwen2.f32"))
    moved = [
        replace(f, region=Region(f.region.buffer + 1, f.region.offset + 256, f.region.size))
        for f in plan.fills
    ]
    store = PieceStore(piece=1 << 16)
    here, there = PackedFile(plan.fills, weights, "m", store), PackedFile(moved, weights, "m", store)
    assert here.etag == there.etag
    hashes = [here.sha256(piece) for piece in here.pieces]
    count = store.packed
    assert [there.sha256(piece) for piece in there.pieces] == hashes and store.packed == count
    other = PackedFile(plan.fills, weights, "another model", store)
    assert other.etag != here.etag
    assert other.sha256(other.pieces[0]) == hashes[0] and store.packed == count + 1


def test_what_is_kept_is_bounded_and_hashing_before_downloading_packs_once() -> None:
    plan, weights = planned(path_of("llama-q.q6_k"))
    store = PieceStore(kept_bytes=100_000, piece=30_000)
    file = PackedFile(plan.fills, weights, "m", store)
    assert file.size > 300_000
    for n, piece in enumerate(file.pieces, 1):
        assert file.sha256(piece) == hashlib.sha256(file.data(piece)).hexdigest()
        assert store.packed == n
        assert store.size <= 100_000
    first = file.pieces[0]
    file.data(first)  # which has been dropped
    assert store.packed == len(file.pieces) + 1
    file.sha256(file.pieces[1])  # hashes are kept
    assert store.packed == len(file.pieces) + 1


def test_who_asks_for_what_is_being_packed_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, weights = planned(path_of("qwen2.f32"))
    file = PackedFile(plan.fills, weights, "m", store := PieceStore(piece=1 << 16))
    waiting = threading.Barrier(4)

    def slow(*arguments: Any) -> Any:
        return fill_bytes(*arguments)

    def ask(_: int) -> bytes:
        waiting.wait(PATIENCE)
        return file.data(file.pieces[0])

    monkeypatch.setattr(weights_module, "fill_bytes", slow)
    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(ask, range(4)))
    assert len(answers) == 1 and store.packed == 1


def test_a_huge_tensor_takes_no_more_memory_than_a_few_pieces() -> None:
    fmt = format_by_name("q8_0")
    n = 1 << 21  # blocks: 71 MB
    data = np.zeros(n * fmt.type_size, np.uint8)
    data[fmt.type_size - 1 :: fmt.type_size] = 7
    weights = {"w": TensorView("w", (n * 32 // 1024, 1024), fmt, data)}
    region = Region(0, 0, 4 * fmt.layout(n).size)
    fills = [Fill(region, "packed", (Rows("w", 0, n * 32 // 1024),))]
    file = PackedFile(fills, weights, "m", PieceStore(kept_bytes=0, piece=1 << 20))
    tracemalloc.start()
    try:
        digest = hashlib.sha256()
        for piece in file.pieces[:: len(file.pieces) // 8]:
            digest.update(file.data(piece))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(file.pieces) == 68 and peak < 16 << 20
