"""What computes, and why. The graphics card is an imitation with plans of its own and NumPy's numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.tiny import load_program, run_chunks, tiny
from tests.tolerances import NUMPY_SAME
from wgllm import lowering, models, placement
from wgllm.backends.base import LoadOptions, Step
from wgllm.backends.device import Adapter, Device, OutOfDeviceMemory
from wgllm.backends.numpy_program import NumpyExecutor, NumpyProgram
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.errors import DeviceError, UsageError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import TensorView
from wgllm.graph import Graph
from wgllm.placement import Placement, Wish, find_device, look_for_device, place
from wgllm.plan import Plan

LIMITS = {
    "max-buffer-size": 1 << 30,
    "max-storage-buffer-binding-size": 1 << 30,
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-workgroup-storage-size": 16384,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroups-per-dimension": 65535,
}
CARD = "webgpu on Card 9000 (discrete, Vulkan)"


class CardProgram:
    """NumPy's program under the card's name."""

    backend = "webgpu"

    def __init__(self, program: NumpyProgram, plan: Plan) -> None:
        self.program, self.plan, self.closed = program, plan, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Card:
    """An executor on a card that has ``room`` bytes for a program."""

    fused_ops: frozenset[str] = frozenset()

    def __init__(self, room: float, error: DeviceError | None = None) -> None:
        self.device = Device(
            Adapter(0, "Card 9000", "discrete", "Vulkan", None), dict(LIMITS), frozenset(), None
        )
        self.room, self.error = room, error
        self.tried: list[Plan] = []
        self.loaded: list[CardProgram] = []

    def prepared(self, graph: Graph, options: LoadOptions) -> Graph:
        return WebGpuExecutor(self.device).prepared(graph, options)

    def plan(self, graph: Graph, options: LoadOptions) -> Plan:
        return WebGpuExecutor(self.device).plan(graph, options)

    def load(self, graph: Graph, weights: Mapping[str, TensorView], options: LoadOptions) -> CardProgram:
        plan = self.plan(self.prepared(graph, options), options)
        self.tried.append(plan)
        if self.error is not None:
            raise self.error
        held = sum(p.plan.size for p in self.loaded if not p.closed)
        if held + plan.size > self.room:
            raise OutOfDeviceMemory("no buffer of 1 MiB: the graphics card has no memory left")
        self.loaded.append(CardProgram(NumpyExecutor().load(graph, weights, options), plan))
        return self.loaded[-1]


Placer = Callable[..., Placement]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Placer:
    """Places a tiny model on a card."""

    def run(card: Card, wish: Wish, *, name: str = "gemma3.f32", ctx: int = 8192) -> Placement:
        monkeypatch.setattr(placement, "WebGpuExecutor", lambda device: card)
        monkeypatch.setattr(placement, "open_device", lambda adapter: card.device)
        file = open_gguf(tiny(name).path)
        built = models.build(file)
        return place(
            built.graph, built.weights, LoadOptions({}), wish, (card.device, ""), ctx, lambda: (4096, 64)
        )

    return run


def size_of(put: Placer, *, ctx: int = 8192, layers: int | None = None, step_rows: int | None = None) -> int:
    """Bytes of the card that gemma3 takes."""
    card = Card(1e12)
    put(card, Wish(layers=layers, step_rows=step_rows), ctx=ctx).pipeline.close()
    return card.loaded[0].plan.size


def backends(placed: Placement) -> list[str]:
    return [p.backend for p in placed.pipeline.programs]


def runs(placed: Placement, name: str = "gemma3.f32") -> None:
    """What was placed computes what NumPy alone does."""
    ids = tiny(name).cases()[1]["ids"]
    expected = run_chunks(load_program(tiny(name).path), ids, len(ids))
    made = placed.pipeline.run(Step.of(ids, 0, out_rows=range(len(ids))))
    assert np.abs(made - expected).max() < NUMPY_SAME


# Which device


def adapters_are(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    found = [Adapter(i, f"card {i}", kind, "Vulkan", None) for i, kind in enumerate(kinds)]
    monkeypatch.setattr(placement, "adapters", lambda: found)

    def opened(adapter: Adapter, features: Iterable[str] = (), **options: Any) -> Device:
        return Device(adapter, dict(LIMITS), frozenset(), None)

    monkeypatch.setattr(Device, "open", staticmethod(opened))


def test_numpy_is_not_asked_for_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    def adapters() -> list[Adapter]:
        raise AssertionError("drivers were loaded")

    monkeypatch.setattr(placement, "adapters", adapters)
    assert find_device(Wish("numpy")) == (None, "as asked")
    assert find_device(Wish(layers=0)) == (None, "as asked")


def test_auto_takes_a_card_but_no_software(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters_are(monkeypatch, "software", "integrated")
    found, _ = find_device(Wish())
    assert found is not None and found.adapter.name == "card 1"
    adapters_are(monkeypatch, "software")
    assert find_device(Wish()) == (None, "only a software adapter, which is slower than NumPy")
    found, _ = find_device(Wish("webgpu"))
    assert found is not None and found.adapter.kind == "software"
    found, _ = find_device(Wish(device="0"))
    assert found is not None and found.adapter.kind == "software"


def test_without_a_card_auto_is_numpy_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters_are(monkeypatch)
    assert find_device(Wish()) == (None, "no driver shows one")
    with pytest.raises(DeviceError, match="no graphics card: no driver shows one; use --backend numpy"):
        find_device(Wish("webgpu"))
    with pytest.raises(DeviceError, match="no driver shows one"):
        find_device(Wish(device="x"))
    adapters_are(monkeypatch, "discrete")
    with pytest.raises(UsageError, match=r"no graphics card 'x' \(0: card 0\)"):
        find_device(Wish(device="x"))


def test_a_driver_that_fails_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters_are(monkeypatch, "discrete")

    def fail(adapter: Adapter, features: Iterable[str] = (), **options: Any) -> Device:
        raise DeviceError("can't open card 0: it is on fire")

    monkeypatch.setattr(Device, "open", staticmethod(fail))
    assert find_device(Wish()) == (None, "can't open card 0: it is on fire")
    with pytest.raises(DeviceError, match="on fire"):
        find_device(Wish("webgpu"))


def test_drivers_that_do_not_answer_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(placement, "_PATIENCE", 0.05)
    monkeypatch.setattr(placement, "find_device", lambda wish: answer.wait(60))
    assert look_for_device(Wish())() == (None, "the graphics drivers did not answer within 0 s")
    with pytest.raises(DeviceError, match="did not answer"):
        look_for_device(Wish("webgpu"))()
    answer.set()


def test_what_is_found_and_what_fails_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters_are(monkeypatch, "discrete")
    device, reason = look_for_device(Wish())()
    assert device is not None and device.adapter.name == "card 0" and not reason
    with pytest.raises(UsageError, match="no graphics card 'x'"):
        look_for_device(Wish(device="x"))()


def test_the_reason_reaches_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGLLM_BACKEND", "auto")
    adapters_are(monkeypatch, "software")
    with wgllm.load(tiny("llama-tied.f32").path) as llm:
        assert llm.where == "numpy on the CPU (only a software adapter, which is slower than NumPy)"
    with wgllm.load(tiny("llama-tied.f32").path, backend="numpy") as llm:
        assert llm.where == "numpy on the CPU (as asked)"


# How much of the model


def test_all_of_it_where_it_fits(put: Placer) -> None:
    card = Card(1e12)
    placed = put(card, Wish())
    assert (backends(placed), placed.ctx_size, placed.step_rows) == (["webgpu"], 8192, 256)
    assert placed.where == CARD
    assert placed.sizes == {"slots": 1, "cells": 8192, "cells.w32": 32 + 256}
    runs(placed)


def test_a_prefill_step_is_as_wide_as_asked_for_but_not_wider_than_the_context(put: Placer) -> None:
    assert put(Card(1e12), Wish(step_rows=48)).step_rows == 48
    assert put(Card(1e12), Wish(ctx_size=100), ctx=100).step_rows == 100
    card = Card(1e12)
    card.device = replace(card.device, adapter=replace(card.device.adapter, kind="software"))
    assert put(card, Wish()).step_rows == 32


@pytest.mark.parametrize(("layers", "on_card"), [(1, 1), (3, 3), (6, 6), (99, 6)])
def test_the_last_layers_are_the_cards(put: Placer, layers: int, on_card: int) -> None:
    placed = put(Card(1e12), Wish(layers=layers))
    programs = placed.pipeline.programs
    assert backends(placed) == (["numpy", "webgpu"] if on_card < 6 else ["webgpu"])
    assert {n.layer for n in programs[-1].graph.nodes} - {None} == set(range(6 - on_card, 6))
    assert programs[-1].graph.nodes[-1].outputs == ("logits",)
    expected = f"{CARD}; {on_card} of 6 layers; the others on the CPU" if on_card < 6 else CARD
    assert placed.where == expected
    runs(placed)


def test_little_memory_takes_a_smaller_context_first_then_layers_away(put: Placer) -> None:
    whole, half, least = (size_of(put, ctx=c) for c in (8192, 4096, 2048))
    four = size_of(put, ctx=2048, layers=4)
    assert whole > half > least > four
    placed = put(Card(1e12), Wish(memory=whole))
    assert (placed.ctx_size, placed.where) == (8192, CARD)
    placed = put(Card(1e12), Wish(memory=whole - 1))
    assert (placed.ctx_size, placed.where) == (4096, f"{CARD}; a context of 8192 does not fit")
    assert placed.sizes["cells"] == 4096
    placed = put(Card(1e12), Wish(memory=least - 1))
    assert placed.ctx_size == 2048 and len(placed.pipeline.programs) == 2
    placed = put(Card(1e12), Wish(memory=four))
    assert placed.where == (
        f"{CARD}; 4 of 6 layers, no more fit; the others on the CPU; a context of 8192 does not fit"
    )
    runs(placed)


def test_the_programs_take_no_more_than_the_budget(put: Placer) -> None:
    for share in (0.9, 0.5, 0.35):
        budget = int(share * size_of(put))
        card = Card(1e12)
        put(card, Wish(memory=budget))
        (program,) = card.loaded
        assert program.plan.size <= budget


def test_a_context_that_was_asked_for_is_never_smaller(put: Placer) -> None:
    budget = size_of(put, layers=3)
    placed = put(Card(1e12), Wish(memory=budget, ctx_size=8192))
    assert placed.ctx_size == 8192
    assert placed.where == f"{CARD}; 3 of 6 layers, no more fit; the others on the CPU"


def test_layers_that_were_asked_for_are_never_fewer(put: Placer) -> None:
    budget = size_of(put, ctx=2048, layers=4)
    placed = put(Card(1e12), Wish(memory=budget, layers=4))
    assert (placed.ctx_size, placed.where) == (
        2048,
        f"{CARD}; 4 of 6 layers; the others on the CPU; a context of 8192 does not fit",
    )
    with pytest.raises(DeviceError, match=r"4 layers with a context of 2048 tokens take .*Card 9000"):
        put(Card(1e12), Wish(memory=budget - 1, layers=4))
    with pytest.raises(DeviceError, match="4 layers with a context of 8192 tokens"):
        put(Card(1e12), Wish(memory=budget, layers=4, ctx_size=8192))


def test_memory_that_runs_out_is_tried_again_with_less(put: Placer) -> None:
    room = size_of(put, ctx=2048, layers=4, step_rows=8)
    card = Card(room)
    placed = put(card, Wish(step_rows=8))
    sizes = [p.size for p in card.tried]
    assert len(sizes) > 2 and sizes == sorted(sizes, reverse=True) and sizes[-1] <= room
    assert all(later <= 0.8 * earlier for earlier, later in pairwise(sizes))
    assert placed.ctx_size == 2048 and "no more fit" in placed.where
    assert [p.closed for p in card.loaded] == [False]
    runs(placed)


def test_what_was_made_before_memory_ran_out_is_closed(put: Placer, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "silu", "gelu_tanh")
    whole = Card(1e12)
    put(whole, Wish())
    sizes = [p.plan.size for p in whole.loaded]
    assert len(sizes) == 7
    closed: list[str] = []
    close = NumpyProgram.close

    def counted(program: NumpyProgram) -> None:
        closed.append(program.backend)
        close(program)

    monkeypatch.setattr(NumpyProgram, "close", counted)
    card = Card(sum(sizes) - 1)
    placed = put(card, Wish(ctx_size=8192))
    opened = [p for p in card.loaded if not p.closed]
    assert len(card.loaded) - len(opened) == 6  # the seventh did not fit
    assert closed == ["numpy"] * 6
    assert opened == [p for p in placed.pipeline.programs if p.backend == "webgpu"]


def test_a_card_for_nothing_is_an_error_when_asked_for_and_numpy_when_not(put: Placer) -> None:
    for wish in (Wish("webgpu"), Wish(device="0"), Wish(layers=2)):
        with pytest.raises(DeviceError, match="a smaller -c or --gpu-layers is needed") as raised:
            put(Card(1000), wish)
        assert raised.value.exit_code == 5 and "\n" not in str(raised.value)
    card = Card(1000)
    placed = put(card, Wish())
    assert backends(placed) == ["numpy"]
    assert (placed.ctx_size, placed.step_rows) == (4096, 64)
    assert placed.where.startswith("numpy on the CPU (1 layers with a context of 2048 tokens take ")
    assert card.loaded == [] and 1 < len(card.tried) < 20
    runs(placed)


def test_a_card_that_fails_is_an_error_when_asked_for_and_numpy_when_not(put: Placer) -> None:
    error = DeviceError("the graphics card refused a step: it is on fire")
    with pytest.raises(DeviceError, match="on fire"):
        put(Card(1e12, error), Wish("webgpu"))
    card = Card(1e12, error)
    placed = put(card, Wish())
    assert placed.where == "numpy on the CPU (the graphics card refused a step: it is on fire)"
    assert len(card.tried) == 1  # that is not for want of memory
    runs(placed)


def test_limits_that_do_not_allow_a_context_count_as_too_little_memory(put: Placer) -> None:
    card = Card(1e12)
    card.device.limits["max-storage-buffer-binding-size"] = 1 << 19  # type: ignore[index]
    placed = put(card, Wish(step_rows=32))
    assert (placed.ctx_size, placed.where) == (4096, f"{CARD}; a context of 8192 does not fit")
    card.loaded.clear()
    with pytest.raises(DeviceError, match=r"Card 9000: rope's table for 8192 positions takes 1 MiB"):
        put(card, Wish("webgpu", ctx_size=8192, step_rows=32))


# Operators without a shader


def without(monkeypatch: pytest.MonkeyPatch, *ops: str) -> None:
    monkeypatch.setattr(lowering, "SHADERS", {op: s for op, s in lowering.SHADERS.items() if op not in ops})


def test_an_operator_without_a_shader_runs_on_numpy(put: Placer, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "gelu_tanh")
    placed = put(Card(1e12), Wish())
    assert backends(placed) == ["webgpu", "numpy"] * 6 + ["webgpu"]
    assert all(
        {n.op for n in p.graph.nodes} == {"gelu_tanh"}
        for p in placed.pipeline.programs
        if p.backend == "numpy"
    )
    assert placed.where == f"{CARD}; gelu_tanh on the CPU: no shader computes it"
    runs(placed)


@pytest.mark.parametrize("op", ["kv_write", "attn_scores", "mask", "softmax", "attn_values"])
def test_kv_state_stays_with_one_program(put: Placer, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    without(monkeypatch, op)
    placed = put(Card(1e12), Wish())
    assert set(backends(placed)) == {"webgpu", "numpy"}
    for program in placed.pipeline.programs:
        kept = {t.name for t in program.graph.of_kind("state") if t.dtype == "kv"}
        assert not kept or program.backend == "numpy"
    runs(placed)


def test_nothing_but_numpy_is_left_without_products(put: Placer, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *lowering.SHADERS)
    placed = put(Card(1e12), Wish())
    assert set(backends(placed)) == {"numpy"}
    runs(placed)
