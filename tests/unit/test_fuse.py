"""Fusion keeps the textbook: same outputs, the same nodes in the bodies."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.tiny import tiny
from wgllm import models, ops
from wgllm.backends import numpy as kernels
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.formats.gguf import open_gguf
from wgllm.fuse import PASSES, fuse
from wgllm.graph import Graph, Node


def textbook(name: str) -> Graph:
    return models.build(open_gguf(tiny(name).path)).graph


def flattened(nodes: tuple[Node, ...]) -> list[Node]:
    return [inner for node in nodes for inner in (node.body or (node,))]


@pytest.mark.parametrize("name", ["llama-tied.f32", "qwen2.f32", "gemma3.f32"])
def test_bodies_hold_exactly_the_textbook_nodes(name: str) -> None:
    graph = textbook(name)
    fused = fuse(graph, NumpyExecutor.fused_ops)
    assert sorted(n.outputs for n in flattened(fused.nodes)) == sorted(n.outputs for n in graph.nodes)
    assert len(fused.nodes) < len(graph.nodes)


@pytest.mark.parametrize("name", ["llama-tied.f32", "qwen2.f32", "gemma3.f32"])
def test_every_layer_is_fused(name: str) -> None:
    graph = textbook(name)
    layers = {n.layer for n in graph.nodes if n.layer is not None}
    ops_per_layer = Counter((n.layer, n.op) for n in fuse(graph, NumpyExecutor.fused_ops).nodes)
    for layer in layers:
        assert ops_per_layer[layer, "attention"] == 1
        assert ops_per_layer[layer, "matmul_concat"] == 2
        assert ops_per_layer[layer, "gated"] == 1
        assert ops_per_layer[layer, "softmax"] == 0


def test_passes_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = textbook("llama-tied.f32")
    monkeypatch.setenv("WGLLM_FUSE", "-attention,-gated")
    made = {n.op for n in fuse(graph, NumpyExecutor.fused_ops).nodes}
    assert "matmul_concat" in made and not made & {"attention", "gated"}
    monkeypatch.setenv("WGLLM_FUSE", "0")
    assert fuse(graph, NumpyExecutor.fused_ops) is graph


def test_every_operator_has_a_definition_and_every_fused_one_a_pass() -> None:
    # matmul_concat is bound by the program, which holds the stacked weights.
    assert set(ops.OPS) == set(kernels.KERNELS) | {"matmul_concat"}
    assert {name for name, op in ops.OPS.items() if op.fused} == set(PASSES)


def test_a_graph_that_reads_what_is_not_made_is_refused() -> None:
    graph = textbook("llama-tied.f32")
    with pytest.raises(ValueError, match="read before it is made"):
        Graph(graph.nodes[3:], graph.tensors, graph.windows).check()
