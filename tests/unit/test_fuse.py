"""Fusion keeps the textbook: same outputs, the same nodes in the bodies."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.tiny import CTX, run_chunks, tiny
from tests.tolerances import NUMPY_SAME
from wgllm import models, ops
from wgllm.backends import numpy as kernels
from wgllm.backends.base import LoadOptions
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.cache import cell_counts
from wgllm.formats.gguf import open_gguf
from wgllm.fuse import PASSES, fuse, unfused
from wgllm.graph import Graph, Node


def textbook(name: str) -> Graph:
    return models.build(open_gguf(tiny(name).path)).graph


def flattened(nodes: tuple[Node, ...]) -> list[Node]:
    return [inner for node in nodes for inner in (node.body or (node,))]


@pytest.mark.parametrize("name", ["llama-tied.f32", "qwen2.f32", "gemma3.f32", "olmoe.f16", "qwen2_moe.f16"])
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


ALL_PASSES = frozenset(PASSES)


PLAIN_LAYER = ["norm_matmul", "rope_write", "attention", "matmul_add", "norm_gated", "matmul_add"]
# Norms stand between its products and their residuals.
EXPERTS_LAYER = [*PLAIN_LAYER[:4], "rms_norm", "matmul", "top_experts", "expert_gated", "expert_add"]
GEMMA_LAYER = [*PLAIN_LAYER[:3], "matmul", "norm_add", "norm_gated", "matmul", "norm_add"]


SCALED_LAYER = [*PLAIN_LAYER[:3], "matmul", "scale", "add", "norm_gated", "matmul", "scale", "add"]
ATTENTION = ["layer_norm", "matmul_row", "rope_write", "attention"]
ROW_ADD = "matmul_row_add"


@pytest.mark.parametrize(
    ("name", "per_layer"),
    [
        ("stablelm.f32", [*ATTENTION, "matmul_add", "layer_norm", "matmul_gated", "matmul_add"]),
        ("command-r.f16", [*ATTENTION, "matmul_add", "matmul_gated", "matmul_add"]),
        ("cohere2.f16", [*ATTENTION, "matmul_add", "matmul_gated", "matmul_add"]),
        ("falcon-7b.f16", [*ATTENTION, "matmul_add", "matmul", "gelu", "matmul_add"]),
        ("gpt2.f32", [*ATTENTION, ROW_ADD, "layer_norm", "matmul_row", "gelu_tanh", ROW_ADD]),
        ("starcoder2.f16", [*ATTENTION, ROW_ADD, "layer_norm", "matmul_row", "gelu_tanh", ROW_ADD]),
        ("gptneox.f16", [*ATTENTION, ROW_ADD, "layer_norm", "matmul_row", "gelu", ROW_ADD]),
    ],
)
def test_layers_with_layer_norms_are_fused_around_them(name: str, per_layer: list[str]) -> None:
    graph = textbook(name)
    fused = fuse(graph, ALL_PASSES)
    for layer in {n.layer for n in graph.nodes if n.layer is not None}:
        assert [n.op for n in fused.nodes if n.layer == layer and n.op != "reshape"] == per_layer


@pytest.mark.parametrize(
    ("name", "per_layer"),
    [
        ("llama-tied.f32", PLAIN_LAYER),
        ("llama-llama3rope.f32", PLAIN_LAYER),
        ("qwen2.f32", PLAIN_LAYER),
        ("gemma3.f32", GEMMA_LAYER),
        ("gemma2.f32", GEMMA_LAYER),
        ("qwen3.f32", PLAIN_LAYER),
        ("phi3.f32", PLAIN_LAYER),
        ("smollm3.f16", PLAIN_LAYER),
        ("granite.f16", SCALED_LAYER),
        ("mixtral.f32", EXPERTS_LAYER),
        ("qwen3_moe.q8_0", EXPERTS_LAYER),
    ],
)
def test_every_layer_is_a_few_nodes(name: str, per_layer: list[str]) -> None:
    graph = textbook(name)
    fused = fuse(graph, ALL_PASSES)
    for layer in {n.layer for n in graph.nodes if n.layer is not None}:
        assert [n.op for n in fused.nodes if n.layer == layer and n.op != "reshape"] == per_layer
    (head,) = (n for n in fused.nodes if n.layer is None and n.op == "norm_matmul")
    assert fused.nodes[-1].outputs == ("logits",)
    # Some are scaled or capped afterwards.
    assert head is fused.nodes[-1] or (head is fused.nodes[-2] and fused.nodes[-1].op in ("scale", "softcap"))


@pytest.mark.parametrize("name", ["llama-tied.f32", "llama-llama3rope.f32", "qwen2.f32", "gemma3.f32"])
def test_bodies_of_all_passes_compute_what_the_textbook_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy runs the bodies of what it has no kernels for."""
    file = open_gguf(tiny(name).path)
    graph = models.build(file).graph
    fused = fuse(graph, ALL_PASSES)
    monkeypatch.setenv("WGLLM_FUSE", "0")
    sizes = cell_counts(graph.windows, CTX, 32, slots=1)
    expected, made = (
        run_chunks(
            NumpyExecutor().load(g, file.tensors, LoadOptions(sizes)), tiny(name).cases()[-1]["ids"][:80], 32
        )
        for g in (graph, fused)
    )
    assert np.abs(made - expected).max() < NUMPY_SAME


def test_unfused_puts_the_bodies_back() -> None:
    graph = textbook("gemma3.f32")
    back = unfused(fuse(graph, NumpyExecutor.fused_ops), ())
    assert sorted(n.outputs for n in back.nodes) == sorted(n.outputs for n in graph.nodes)
    back.check()


def test_passes_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = textbook("llama-tied.f32")
    monkeypatch.setenv("WGLLM_FUSE", "-attention,-gated")
    made = {n.op for n in fuse(graph, NumpyExecutor.fused_ops).nodes}
    assert "matmul_concat" in made and not made & {"attention", "gated"}
    monkeypatch.setenv("WGLLM_FUSE", "0")
    assert fuse(graph, NumpyExecutor.fused_ops) is graph


def test_every_operator_has_a_definition_and_every_fused_one_a_pass() -> None:
    textbook_ops = {name for name, op in ops.OPS.items() if not op.fused}
    # matmul_concat is bound by the program, which holds the stacked weights.
    assert set(kernels.KERNELS) == textbook_ops | NumpyExecutor.fused_ops - {"matmul_concat"}
    assert {name for name, op in ops.OPS.items() if op.fused} == set(PASSES)


def test_a_graph_that_reads_what_is_not_made_is_refused() -> None:
    graph = textbook("llama-tied.f32")
    with pytest.raises(ValueError, match="read before it is made"):
        Graph(graph.nodes[3:], graph.tensors, graph.windows).check()
