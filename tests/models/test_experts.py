"""Mixtures of experts: who is read, in which pieces, and what files say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.models.test_webgpu import SAME, as_card, load_webgpu, narrow, off
from tests.tiny import CTX, load_on, load_program, run_chunks, tiny
from tests.tolerances import NUMPY_SAME
from wgllm import lowering, models
from wgllm.backends.base import Array, Executor, Ints, LoadOptions, Step
from wgllm.backends.device import Device
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.cache import cell_counts
from wgllm.errors import ModelFileError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import ModelFile, TensorView
from wgllm.graph import Node
from wgllm.lowering import PlanOptions, lower, prepared
from wgllm.plan import Limits
from wgllm.plan_figures import PlanFigures
from wgllm.step_rows import weight_size

ALL = ["mixtral.f32", "qwen2_moe.f16", "olmoe.f16", "qwen3_moe.q8_0"]


def changed(name: str, keys: Mapping[str, Any] = {}, tensors: Mapping[str, TensorView] = {}) -> ModelFile:
    file = open_gguf(tiny(name).path)
    metadata = {f"{file.architecture}.{k}": v for k, v in keys.items()}
    return replace(file, metadata={**file.metadata, **metadata}, tensors={**file.tensors, **tensors})


def logits(file: ModelFile, ids: list[int], executor: Executor | None = None) -> Array:
    built = models.build(file)
    sizes = cell_counts(built.graph.windows, CTX, 64, 1)
    options = LoadOptions(sizes, largest_step=64, ctx_size=CTX)
    program = (executor or NumpyExecutor()).load(built.graph, built.weights, options)
    try:
        return run_chunks(program, ids, 64)
    finally:
        program.close()


def prompt(n: int) -> list[int]:
    return (tiny("mixtral.f32").cases()[-1]["ids"] * 3)[:n]


# Only what is chosen is read


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("memory", [0, None])
@pytest.mark.parametrize("name", ["qwen3_moe.q8_0", "olmoe.f16"])
def test_numpy_reads_only_the_experts_that_are_chosen(name: str, memory: int | None, rows: int) -> None:
    path = tiny(name).path
    assert_unchosen_are_not_read(
        NumpyExecutor(), name, rows, load_program(path, memory=memory), memory=memory
    )


@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("card", [False, True])
def test_shaders_read_only_the_experts_that_are_chosen(own_device: Device, card: bool, rows: int) -> None:
    executor = WebGpuExecutor(as_card(own_device) if card else own_device)
    name = "olmoe.f16"
    assert_unchosen_are_not_read(executor, name, rows, load_on(executor, tiny(name).path))


def assert_unchosen_are_not_read(
    executor: Executor, name: str, rows: int, program: Any, **options: Any
) -> None:
    """What a step makes is the same when all other experts are NaN."""
    # A few tokens that choose alike: the more rows, the more experts.
    step = Step.of([prompt(1)[0]] * rows, 0, out_rows=[rows - 1])
    chosen: dict[int | None, set[int]] = {}

    def note(node: Node, made: Mapping[str, Array | Ints]) -> None:
        if node.op == "top_experts":
            chosen[node.layer] = set(made[node.outputs[0]].reshape(-1).tolist())

    expected = program.run(step.inputs(), trace=note)["logits"]
    program.close()
    file = open_gguf(tiny(name).path)
    poisoned, unread = dict(file.tensors), 0
    for layer, ids in chosen.items():
        for part in ("gate", "up", "down"):
            view = file.tensors[f"blk.{layer}.ffn_{part}_exps.weight"]
            data = view.data.copy().reshape(view.shape[0], -1)
            others = [e for e in range(view.shape[0]) if e not in ids]
            data[others] = 0xFF  # of every format that has float16 scales, a NaN
            unread += len(others)
            poisoned[view.name] = replace(view, data=data.reshape(-1))
    assert unread and chosen
    built = models.build(file)
    sizes = cell_counts(built.graph.windows, CTX, 64, 1)
    wanted = LoadOptions(sizes, largest_step=64, ctx_size=CTX, **options)
    again = executor.load(built.graph, poisoned, wanted)
    made = again.run(step.inputs())["logits"]
    again.close()
    assert np.isfinite(made).all() and np.array_equal(made, expected)


@pytest.mark.parametrize("name", ALL)
def test_bytes_of_a_token_count_the_chosen_experts(name: str) -> None:
    file = open_gguf(tiny(name).path)
    built = models.build(file)
    keys = file.metadata
    experts = keys[f"{file.architecture}.expert_count"]
    share = keys[f"{file.architecture}.expert_used_count"] / experts
    sizes = {"read": 0.0, "numbers": 0.0, "all": 0.0}
    for tensor in built.graph.of_kind("weight"):
        view = file.tensors[tensor.name]
        if len(tensor.shape) > 1 and "token_embd" not in tensor.name:
            part = share if "_exps" in tensor.name else 1
            sizes["read"] += part * view.nbytes
            sizes["numbers"] += part * view.size
            sizes["all"] += view.nbytes
    graph = prepared(built.graph)
    for binding in (128 << 20, 48 << 10):
        options = PlanOptions({"slots": 1, "cells": 64}, 64, 4, limits=Limits(binding=binding))
        figures = PlanFigures(lower(graph, options), graph)
        token = figures.token(64)
        assert token.packed_weights == token.traffic.products
        # Planes are padded to 16 bytes.
        assert sizes["read"] <= token.packed_weights < 1.01 * sizes["read"] < sizes["all"]
        rows = figures.schedule(*figures.plan.schedule("body", 4, 64)).traffic.products
        assert token.traffic.products < rows + 4 * 512 * 64 <= sizes["all"] + 4 * 512 * 64
    program = load_program(tiny(name).path, memory=0)
    assert program.weight_bytes == round(sizes["read"])
    assert sum(program.products) == round(sizes["numbers"])


def test_what_a_row_is_multiplied_with_counts_the_chosen_experts() -> None:
    """It bounds the rows of a step on devices."""
    graph = models.build(open_gguf(tiny("mixtral.f32").path)).graph
    sizes = {n.op: weight_size(graph, n) for n in graph.nodes if n.layer == 1}
    assert sizes["expert_matmul"] == 2 * (2 * 64 * 64) and sizes["top_experts"] == 0


# Steps of all widths, shards and parts


@pytest.mark.parametrize("name", ALL)
def test_steps_of_any_width_give_the_same_logits(name: str) -> None:
    ids = prompt(300)
    whole = run_chunks(load_program(tiny(name).path, memory=0), ids, 300)
    for chunk in (1, 5, 256):
        made = run_chunks(load_program(tiny(name).path), ids[: 40 * chunk], chunk)
        assert off(made, whole[: len(made)]) < NUMPY_SAME


@pytest.mark.parametrize("card", [False, True])
@pytest.mark.parametrize("name", ["mixtral.f32", "qwen3_moe.q8_0"])
def test_steps_of_any_width_give_the_same_logits_on_a_device(
    own_device: Device, name: str, card: bool
) -> None:
    ids = prompt(300)
    whole = run_chunks(load_program(tiny(name).path), ids, 300)
    device = as_card(own_device) if card else own_device
    program = load_webgpu(device, tiny(name).path, largest_step=300)
    for first, last, chunk in ((0, 3, 1), (3, 13, 5), (13, 300, 287)):
        made = run_chunks(program, ids[first:last], chunk, start=first)
        assert off(made, whole[first:last]) < SAME
    entries = {k.entry for k in program.plan.kernels}
    program.close()
    assert {"top_experts", "sort_experts", "weighted_add"} <= entries
    assert ("matmul" in entries) == card


@pytest.mark.parametrize(
    ("name", "binding", "whole", "card"),
    [
        ("qwen3_moe.f32", 80 << 10, True, False),
        ("mixtral.f32", 28 << 10, False, True),
        ("qwen2_moe.f16", 24 << 10, True, True),
    ],
)
def test_experts_in_shards_give_the_same_logits(
    own_device: Device, monkeypatch: pytest.MonkeyPatch, name: str, binding: int, whole: bool, card: bool
) -> None:
    """Several experts in each shard, or only a part of one."""
    monkeypatch.setattr(lowering, "_LOGITS_BYTES", 4 * 512 * 4)
    model, ids = tiny(name), prompt(29)
    device = as_card(own_device) if card else own_device
    program = load_webgpu(
        narrow(device, binding=binding, buffer=4 * binding), model.path, largest_step=16, ctx=32
    )
    height = program.graph.tensors["blk.0.ffn_gate_exps.weight"].shape[1]
    assert isinstance(height, int)
    packed = [f.rows for f in program.plan.fills if f.kind == "packed"]
    shards = [rows for rows in packed if rows[0].tensor == "blk.0.ffn_gate_exps.weight"]
    assert len(shards) > 1
    # Gate and up of the same experts, all of each or a part.
    for gate, up in shards:
        assert gate[1:] == up[1:] and up.tensor == "blk.0.ffn_up_exps.weight"
        assert (gate.first % height == gate.last % height == 0) == whole
        assert gate.last - gate.first < height or whole
    assert [s[0].first for s in shards[1:]] == [s[0].last for s in shards[:-1]]
    expected = run_chunks(load_program(model.path), ids, 29)
    made = run_chunks(program, ids[:2], 1), run_chunks(program, ids[2:], 16, start=2)
    program.close()
    assert off(np.concatenate(made), expected) < SAME


# What files say


def test_the_gate_of_the_shared_expert_may_be_a_matrix_of_one_row() -> None:
    ids = prompt(9)
    expected = logits(open_gguf(tiny("qwen2_moe.f16").path), ids)
    file = open_gguf(tiny("qwen2_moe.f16").path)
    gates = [v for n, v in file.tensors.items() if n.endswith("ffn_gate_inp_shexp.weight")]
    shapes = {(64,), (1, 64)}
    for shape in shapes:
        other = changed("qwen2_moe.f16", tensors={v.name: replace(v, shape=shape) for v in gates})
        assert np.array_equal(logits(other, ids), expected)
    assert gates and {v.shape for v in gates} < shapes


def test_weights_are_normalized_and_scaled_as_the_file_says() -> None:
    def attrs(name: str, keys: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        graph = models.build(changed(name, keys)).graph
        return [
            (n.attrs["count"], n.attrs["normalized"], n.attrs["scale"])
            for n in graph.nodes
            if n.op == "top_experts"
        ]

    assert attrs("mixtral.f32", {}) == [(2, True, 1.0)] * 2
    assert attrs("qwen3_moe.q8_0", {}) == [(3, True, 1.0)] * 2
    assert attrs("qwen2_moe.f16", {}) == [(3, False, 1.0)] * 2
    assert attrs("olmoe.f16", {}) == [(4, False, 1.0)] * 2
    assert (
        attrs("olmoe.f16", {"expert_weights_norm": True, "expert_weights_scale": 2.5}) == [(4, True, 2.5)] * 2
    )
    assert attrs("qwen3_moe.q8_0", {"expert_weights_norm": False}) == [(3, False, 1.0)] * 2
    assert attrs("qwen2_moe.f16", {"expert_gating_func": 3}) == [(3, True, 1.0)] * 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", -1),
        ("expert_count", 1 << 20),
        ("expert_used_count", 0),
        ("expert_used_count", 11),
        ("expert_used_count", "two"),
        ("expert_gating_func", 2),
        ("expert_group_count", 8),
        ("expert_weights_norm", 1.0),
        ("expert_weights_scale", float("nan")),
        ("attention.clamp_kqv", 8.0),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ModelFileError, match=f"olmoe.{key}"):
        models.build(changed("olmoe.f16", {key: value}))


def test_sizes_that_tensors_do_not_have_are_refused() -> None:
    for keys in ({"expert_count": 9}, {"expert_feed_forward_length": 64}):
        with pytest.raises(ModelFileError, match="its shape is"):
            models.build(changed("olmoe.f16", keys))
    with pytest.raises(ModelFileError, match=r"olmoe\.expert_count: missing"):
        models.build(changed("olmoe.f16", {"expert_count": 0}))
    # Llama's family has models without experts, which this is none of.
    with pytest.raises(ModelFileError, match="ffn_gate"):
        models.build(changed("mixtral.f32", {"expert_count": 0}))


@pytest.mark.parametrize("name", ["mixtral.f32", "qwen2_moe.f16"])
def test_every_tensor_that_is_missing_is_named(name: str) -> None:
    file = open_gguf(tiny(name).path)
    for tensor in [n for n in file.tensors if "blk.1.ffn" in n and "shexp" not in n]:
        with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_"):
            models.build(replace(file, tensors={n: v for n, v in file.tensors.items() if n != tensor}))


def test_two_experts_that_are_equal_are_chosen_in_order() -> None:
    file = open_gguf(tiny("mixtral.f32").path)
    view = file.tensors["blk.0.ffn_gate_inp.weight"]
    same = replace(view, data=np.zeros_like(view.data))
    built = models.build(file)
    sizes = cell_counts(built.graph.windows, CTX, 64, 1)
    program = NumpyExecutor().load(built.graph, {**built.weights, view.name: same}, LoadOptions(sizes))
    made: list[Any] = []
    program.run(
        Step.of(prompt(3), 0).inputs(),
        trace=lambda node, values: (
            made.append(values[node.outputs[0]]) if node.op == "top_experts" and node.layer == 0 else None
        ),
    )
    np.testing.assert_array_equal(made, [[[0, 1]] * 3])
