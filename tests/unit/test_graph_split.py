"""Cutting a graph into what runs at different places."""

from __future__ import annotations

import pytest

from tests.tiny import tiny
from wgllm import models
from wgllm.formats.gguf import open_gguf
from wgllm.graph import Graph


def graph_of(name: str) -> Graph:
    return models.build(open_gguf(tiny(name).path)).graph


def by_layer(graph: Graph, first: int) -> list[str]:
    """Places: what comes before a layer, and the rest."""
    at = next(i for i, n in enumerate(graph.nodes) if n.layer is not None and n.layer >= first)
    return ["cpu"] * at + ["gpu"] * (len(graph.nodes) - at)


def test_each_run_of_nodes_at_one_place_is_a_graph() -> None:
    graph = graph_of("llama-tied.f32")
    products = ["cpu" if n.op in ("silu", "mul") else "gpu" for n in graph.nodes]
    parts = graph.split(products)
    assert [place for place, _ in parts] == ["gpu", "cpu"] * 3 + ["gpu"]
    nodes = [n for _, part in parts for n in part.nodes if n.op != "cell_write"]
    assert nodes == [n for n in graph.nodes if n.op != "cell_write"]
    for _, part in parts:
        part.check()


def test_one_place_is_the_whole_graph() -> None:
    graph = graph_of("gemma3.f32")
    ((place, part),) = graph.split([7] * len(graph.nodes))
    assert (place, part.nodes, part.windows) == (7, graph.nodes, graph.windows)
    assert dict(part.tensors) == dict(graph.tensors)


def test_what_crosses_is_an_output_there_and_an_input_here() -> None:
    graph = graph_of("gemma3.f32")
    (_, first), (_, rest) = graph.split(by_layer(graph, 3))
    crossing = {t.name for t in first.of_kind("output")}
    assert crossing == {t.name for t in rest.of_kind("input")} - {t.name for t in graph.of_kind("input")}
    assert len(crossing) == 1
    assert {t.name for t in rest.of_kind("output")} == {"logits"}
    assert graph.tensors[crossing.pop()].kind == "temp"
    kept = [n for n, t in first.tensors.items() if t.kind == "weight"]
    assert not [n for n in kept if n.startswith(("blk.3", "blk.4", "blk.5"))]


def test_what_is_read_by_a_place_that_does_not_follow_at_once_crosses_too() -> None:
    graph = graph_of("llama-tied.f32")
    parts = graph.split(["cpu" if n.op == "silu" else "gpu" for n in graph.nodes])
    first, _, third = (part for _, part in parts[:3])
    residual = {t.name for t in first.of_kind("output")} & {t.name for t in third.of_kind("input")}
    assert len(residual) >= 2  # the residual stream and the up projection pass the activation by


def test_every_place_that_sees_positions_writes_them_itself() -> None:
    graph = graph_of("gemma3.f32")
    assert sum(n.op == "cell_write" for n in graph.nodes) == 2
    (_, first), (_, rest) = graph.split(by_layer(graph, 3))
    writes = [[n.outputs[0] for n in part.nodes if n.op == "cell_write"] for part in (first, rest)]
    # Layers 0 to 4 have windows, layer 5 has none.
    assert writes == [["cells.w32.pos"], ["cells.w32.pos", "cells.pos"]]
    assert dict(first.windows) == {"cells.w32": 32}
    assert dict(rest.windows) == {"cells.w32": 32, "cells": None}
    for part in (first, rest):
        assert {"pos", "slot"} <= {t.name for t in part.of_kind("input")}
        part.check()


def test_kv_state_has_one_place() -> None:
    graph = graph_of("llama-tied.f32")
    with pytest.raises(ValueError, match=r"two segments would share blk\.0\.k\.state"):
        graph.split(["cpu" if n.op == "attn_scores" else "gpu" for n in graph.nodes])
    with pytest.raises(ValueError, match=r"two segments would share blk\.0\.v\.state"):
        graph.split(["cpu" if n.op == "softmax" else "gpu" for n in graph.nodes])


def test_each_node_needs_a_place() -> None:
    graph = graph_of("llama-tied.f32")
    with pytest.raises(ValueError, match="longer"):
        graph.split([0] * (len(graph.nodes) - 1))


@pytest.mark.parametrize("layer", [0, 6, 7])
def test_there_is_nothing_before_the_first_layer_or_after_the_last(layer: int) -> None:
    graph = graph_of("gemma3.f32")
    if layer == 0:
        first, rest = graph.cut(0)  # the embedding
        assert {n.layer for n in first.nodes} == {None} and rest.nodes[-1].outputs == ("logits",)
    else:
        with pytest.raises(ValueError, match=f"nothing to cut before layer {layer}"):
            graph.cut(layer)
