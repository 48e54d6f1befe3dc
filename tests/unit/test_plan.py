"""Plans of the tiny models: as data, and whether replaying them computes what the graph means. No GPU is needed."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.tiny import ALL, CTX, Tiny, tiny
from wgllm import lowering, models
from wgllm.cache import cell_counts
from wgllm.formats.gguf import open_gguf
from wgllm.graph import Graph
from wgllm.lowering import PlanOptions, lower, widest_step
from wgllm.plan import ALIGNMENT, VERSION, Dispatch, Limits, Plan, PlanError, Region, Width
from wgllm.quant import format_by_name

TIGHT = Limits(binding=64 << 10, buffer=128 << 10, workgroups=7)
WIDTHS = [("body", 1, 1), ("body", 5, 20), ("body", 64, 300), ("tail", 1, 0), ("tail", 9, 0)]
HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("llama-tied.f32", {}),
    ("llama-q.q4_k_s", {}),
    ("gemma3.f32", {}),
    ("gemma3.f32", {"kv_type": "q8_0", "slots": 3}),
    ("llama-tied.f32", {"limits": TIGHT, "ctx": 256}),
    ("llama-q.q6_k", {"limits": TIGHT, "ctx": 64}),
    ("gemma3.f32", {"limits": TIGHT, "ctx": 256}),
]


def graph_of(model: Tiny) -> Graph:
    return models.build(open_gguf(model.path)).graph


def options_of(
    graph: Graph,
    *,
    ctx: int = CTX,
    rows: int = 64,
    slots: int = 1,
    kv_type: str = "f32",
    limits: Limits | None = None,
) -> PlanOptions:
    sizes = cell_counts(graph.windows, ctx, rows, slots)
    wanted = PlanOptions(sizes, ctx, rows, lambda state: kv_type, limits or Limits())
    rows = widest_step(graph, wanted)
    return replace(wanted, rows=rows, sizes=cell_counts(graph.windows, ctx, rows, slots))


def plan_of(name: str, **options: Any) -> tuple[Graph, Plan]:
    graph = graph_of(tiny(name))
    return graph, lower(graph, options_of(graph, **options))


def schedules(plan: Plan) -> dict[Width, tuple[Dispatch, ...]]:
    """Some of each part, as wide as the plan allows."""
    for part, rows, cells in WIDTHS:
        most = plan.rows if part == "body" else plan.out_rows
        plan.schedule(part, min(rows, most), min(cells, plan.cells))  # type: ignore[arg-type]
    return plan.schedules


def written(plan: Plan, dispatch: Dispatch) -> int:
    """The one binding that a dispatch's shader writes, by the shader's text."""
    text = plan.kernels[dispatch.kernel].source.text
    declared = re.findall(r"@binding\((\d+)\)\s*var<storage,\s*(read|read_write)>", text)
    accesses = {int(number): access for number, access in declared}
    assert len(accesses) == len(declared)
    # Other entry points of the file may have more.
    (made,) = [i for i in range(len(dispatch.bindings)) if accesses[i] == "read_write"]
    return made


# As data


@pytest.mark.parametrize("model", ALL, ids=lambda t: t.id)
def test_a_plan_is_the_same_after_json(model: Tiny) -> None:
    graph = graph_of(model)
    plan = lower(graph, options_of(graph))
    schedules(plan)
    assert len(plan.schedules) == len(WIDTHS)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert {type(r) for d in next(iter(again.schedules.values())) for r in d.bindings} == {Region}
    assert any(len({file for file, _ in k.source.origin}) > 1 for k in again.kernels)
    for mine, theirs in zip(plan.kernels, again.kernels, strict=True):
        assert theirs.source.origin == mine.source.origin
        assert len(mine.source.origin) == len(mine.source.text.splitlines())


def test_a_plan_of_another_version_is_refused() -> None:
    _, plan = plan_of("llama-tied.f32")
    for version in (0, None, "1"):
        with pytest.raises(PlanError, match=f"no plan of version {VERSION}"):
            Plan.from_json({**plan.to_json(), "version": version})


# Schedules


def test_widths_are_powers_of_two_up_to_the_most() -> None:
    _, plan = plan_of("llama-tied.f32", rows=48, ctx=600)
    assert [plan.schedule("body", n, 1)[0].rows for n in (1, 2, 3, 5, 33, 48)] == [1, 2, 4, 8, 48, 48]
    assert [plan.schedule("body", 1, n)[0].cells for n in (1, 256, 257, 513, 600)] == [
        256,
        256,
        512,
        600,
        600,
    ]
    assert plan.schedule("tail", 3)[0] == Width("tail", 4, 0)
    assert plan.schedule("body", 7, 9)[1] is plan.schedule("body", 8, 200)[1]


@pytest.mark.parametrize("lowers", [True, False])
def test_too_many_rows_or_cells_are_refused(lowers: bool) -> None:
    _, plan = plan_of("llama-tied.f32")
    schedules(plan)
    if not lowers:
        plan = replace(plan, lower=None)
    for part, rows, cells in [("body", 65, 1), ("body", 0, 1), ("body", 1, CTX + 1), ("tail", 65, 0)]:
        with pytest.raises(PlanError, match=f"no {part} of {rows} rows and {cells} cells"):
            plan.schedule(part, rows, cells)  # type: ignore[arg-type]


def test_without_the_lowering_the_narrowest_schedule_that_is_there_is_taken() -> None:
    _, plan = plan_of("llama-tied.f32")
    schedules(plan)
    kept = Plan.from_json(plan.to_json())
    assert kept.schedule("body", 1, 256)[0] == Width("body", 1, 256)
    assert kept.schedule("body", 2, 10)[0] == Width("body", 8, 256)
    assert kept.schedule("body", 9, 10)[0] == Width("body", 64, 512)
    assert kept.schedule("tail", 2)[0] == Width("tail", 16)
    assert kept.schedule("body", 1, 257)[0] == Width("body", 64, 512)
    with pytest.raises(PlanError, match="no tail of 17 rows"):
        kept.schedule("tail", 17)


def test_few_positions_make_scores_of_few_cells() -> None:
    graph, plan = plan_of("llama-tied.f32", ctx=512)
    attention = [i for i, n in enumerate(graph.nodes) if n.op == "attn_scores"]

    def cost(cells: int) -> int:
        return sum(d.cost for d in plan.schedule("body", 1, cells)[1] if d.node in attention)

    assert 2 * cost(256) == cost(512)


def test_a_segment_that_passes_scores_on_always_makes_all_of_them() -> None:
    graph = graph_of(tiny("llama-tied.f32"))
    at = next(i for i, n in enumerate(graph.nodes) if n.op == "mask")
    plan = lower(graph._part(graph.nodes[:at], graph.nodes[at:]), options_of(graph))
    assert plan.schedule("body", 1, 1)[0].cells == CTX


# Memory


def roots(graph: Graph) -> dict[str, str]:
    """Tensor → the one whose numbers it renames."""
    made: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "reshape":
            made[node.outputs[0]] = made.get(node.inputs[0], node.inputs[0])
    return made


class Replay:
    """Which value each buffer holds while a plan's dispatches run."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.renamed = roots(graph)
        self.holds: dict[int, str] = {v.region.buffer: name for name, v in plan.inputs.items()}
        self.holds |= {s.region.buffer: name for name, s in plan.states.items()}
        self.written: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def root(self, name: str) -> str:
        return self.renamed.get(name, name)

    def run(self, width: Width) -> None:
        for dispatch in self.plan.schedules[width]:
            self.dispatch(dispatch, width)

    def dispatch(self, dispatch: Dispatch, width: Width) -> None:
        plan, node = self.plan, self.graph.nodes[dispatch.node]
        made = written(plan, dispatch)
        target = dispatch.bindings[made]
        read = [r for i, r in enumerate(dispatch.bindings) if i != made]
        assert target.buffer not in {r.buffer for r in read}, f"{node.op} reads the buffer that it writes"
        meant = {
            self.root(n)
            for n in node.inputs
            if self.graph.tensors[n].kind != "weight" and n not in node.outputs
        }
        found = {self.holds[r.buffer] for r in read if plan.buffers[r.buffer].role != "weights"}
        assert found == meant, f"{node.op} {node.outputs} reads {found}, means {meant}"
        (output,) = node.outputs
        assert target.buffer == plan.nodes[dispatch.node].regions[0].buffer
        self.holds[target.buffer] = self.root(output)
        for name in (*node.inputs, output):
            self.check_room(name, dispatch, width)
        assert 1 <= dispatch.groups <= plan.limits.workgroups
        assert dispatch.cost > 0

    def check_room(self, name: str, dispatch: Dispatch, width: Width) -> None:
        """What the shader sees of a tensor is as large as the tensor is in this schedule."""
        tensor = self.graph.tensors[name]
        if tensor.kind == "weight":
            return
        buffers = {b for b, held in self.holds.items() if held == self.root(name)}
        (seen,) = {r.size for r in dispatch.bindings if r.buffer in buffers}
        if tensor.kind == "state":
            assert seen == self.plan.states[name].region.size
        elif self.graph.nodes[dispatch.node].op != "select_rows" or tensor.kind != "temp":
            sizes = {"rows": width.rows, "out_rows": width.rows}
            sizes |= {c: min(self.cells[c], width.cells) for c in self.graph.windows}
            numbers = math.prod(d if isinstance(d, int) else sizes[d] for d in tensor.shape)
            assert 4 * numbers <= seen < 4 * numbers + 16

    @property
    def cells(self) -> dict[str, int]:
        return {n.removesuffix(".pos"): s.shape[1] for n, s in self.plan.states.items() if s.kv_type == "i32"}


@pytest.mark.parametrize(("name", "options"), HOSTILE)
def test_every_dispatch_reads_what_its_node_means(name: str, options: dict[str, Any]) -> None:
    graph, plan = plan_of(name, **options)
    found = schedules(plan)
    bodies = [w for w in found if w.part == "body"]
    tails = [w for w in found if w.part == "tail"]
    assert len(bodies) >= 2 and len(tails) >= 2
    for body in bodies:
        replay = Replay(graph, plan)
        replay.run(body)
        for tail in (*tails, *tails):  # a tail runs as often as there are rows
            replay.run(tail)
            region = plan.outputs["logits"].region
            assert replay.holds[region.buffer] == replay.root("logits")
    covered = {d.node for schedule in found.values() for d in schedule}
    assert covered == {i for i, n in enumerate(graph.nodes) if n.op != "reshape"}


def test_what_another_segment_reads_is_there_when_the_segment_has_run() -> None:
    graph = graph_of(tiny("llama-tied.f32"))
    options = options_of(graph)
    most = 0
    for at in range(2, len(graph.nodes), 3):
        part = graph._part(graph.nodes[:at], graph.nodes[at:])
        plan = lower(part, options)
        assert set(plan.outputs) == {t.name for t in part.of_kind("output")}
        replay = Replay(part, plan)
        replay.run(plan.schedule("body", 64, 512)[0])
        for name, value in plan.outputs.items():
            if value.part == "body":
                assert replay.holds[value.region.buffer] == replay.root(name), f"{name}, cut at {at}"
        most = max(most, len(plan.outputs))
    assert most > 2


@pytest.mark.parametrize(("name", "options"), HOSTILE)
def test_regions_lie_in_their_buffers_and_keep_to_the_limits(name: str, options: dict[str, Any]) -> None:
    _, plan = plan_of(name, **options)
    used = [r for schedule in schedules(plan).values() for d in schedule for r in d.bindings]
    used += [f.region for f in plan.fills] + [r for n in plan.nodes for r in n.regions]
    used += [v.region for v in (*plan.inputs.values(), *plan.outputs.values(), *plan.states.values())]
    for buffer, offset, size in used:
        assert offset % ALIGNMENT == 0 and size % 16 == 0 and size > 0
        assert offset + size <= plan.buffers[buffer].size
        assert size <= plan.limits.binding
    for made in plan.buffers:
        assert made.size % 16 == 0 and 0 < made.size <= plan.limits.buffer
    for schedule in plan.schedules.values():
        assert all(len(d.bindings) <= plan.limits.bindings for d in schedule)


@pytest.mark.parametrize(("name", "options"), HOSTILE)
def test_fills_cover_every_weight_once(name: str, options: dict[str, Any]) -> None:
    graph, plan = plan_of(name, **options)
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for fill in plan.fills:
        places[fill.region.buffer].append((fill.region.offset, fill.region.offset + fill.region.size))
        if fill.kind != "rope":
            for part in fill.rows:
                rows[part.tensor].append((part.first, part.last))
    for taken in places.values():
        taken.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    used = {n for node in graph.nodes if node.op != "rope" for n in node.inputs}
    for tensor in graph.of_kind("weight"):
        if tensor.name not in used:
            assert tensor.name not in rows
            continue
        shards = sorted(rows.pop(tensor.name))
        assert shards[0][0] == 0 and shards[-1][1] == tensor.shape[0]
        assert all(end == first for (_, end), (first, _) in pairwise(shards))
        shape = [d for d in tensor.shape if isinstance(d, int)]
        size = shape[0] * format_by_name(tensor.dtype).row_bytes(shape[-1])
        large = len(shape) > 1 and size > plan.limits.binding
        assert (len(shards) > 1) == large, tensor.name
    assert not rows


def test_tight_limits_do_cut_weights_and_workgroups() -> None:
    _, plan = plan_of("llama-tied.f32", limits=TIGHT, ctx=256)
    pieces = [f for f in plan.fills if any(r.tensor == "token_embd.weight" for r in f.rows)]
    assert len(pieces) == 2
    assert sum(b.role == "weights" for b in plan.buffers) > 2
    (_, body) = plan.schedule("body", plan.rows, 256)
    assert max(d.groups for d in body) == 7
    _, usual = plan_of("llama-tied.f32", ctx=256)
    assert max(d.groups for d in usual.schedule("body", 64, 256)[1]) > 7


def test_more_workgroups_than_a_device_takes_come_round_again() -> None:
    _, plan = plan_of("llama-tied.f32", rows=256, limits=Limits(workgroups=100))
    assert max(d.groups for d in plan.schedule("body", 256, 512)[1]) == 100


@pytest.mark.parametrize(("name", "at_most"), [("llama-q.q4_k_s", 0.4), ("gemma3.f32", 0.2)])
def test_temporaries_share_scratch(name: str, at_most: float) -> None:
    graph, plan = plan_of(name)
    sizes = {**options_of(graph).sizes, "rows": plan.rows, "out_rows": plan.out_rows}
    renamed = roots(graph)
    apart = sum(
        4 * math.prod(d if isinstance(d, int) else sizes[d] for d in t.shape)
        for t in graph.tensors.values()
        if t.kind in ("temp", "output") and t.name not in renamed
    )
    share = plan.size_of("scratch") / apart
    assert share < at_most, share


@pytest.mark.parametrize("model", [t for t in ALL if not t.id.endswith("f32")], ids=lambda t: t.id)
def test_packed_weights_are_hardly_larger_than_the_file(model: Tiny) -> None:
    file = open_gguf(model.path)
    built = models.build(file)
    plan = lower(built.graph, options_of(built.graph))
    packed = [f for f in plan.fills if f.kind == "packed"]
    assert len(packed) > 5
    in_file = sum(built.weights[r.tensor].nbytes for f in packed for r in f.rows)
    assert sum(f.region.size for f in packed) <= 1.03 * in_file


def test_rope_is_one_table_of_each_kind() -> None:
    for name, kinds in (("gemma3.f32", 2), ("llama-llama3rope.f32", 1)):
        _, plan = plan_of(name)
        tables = [f for f in plan.fills if f.kind == "rope"]
        assert len(tables) == kinds
        assert all(f.positions == CTX and f.region.size == 4 * CTX * f.dim for f in tables)
    assert [r.tensor for r in tables[0].rows] == ["rope_freqs.weight"]


# What can't be planned


def test_a_row_that_no_binding_holds_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"a row of \S+ is larger than the \d+ bytes that a shader sees at once"
    ):
        plan_of("llama-tied.f32", ctx=16, rows=1, limits=Limits(binding=240, buffer=1 << 20))


def test_a_state_that_no_binding_holds_is_refused() -> None:
    limits = Limits(binding=1 << 20, buffer=2 << 20)
    with pytest.raises(
        PlanError, match=r"blk.0.k.state takes 2 MiB, of which .* shows a shader 1 MiB at once"
    ):
        plan_of("llama-tied.f32", ctx=16384, rows=1, limits=limits)


@pytest.mark.parametrize("limits", [Limits(binding=1 << 20), Limits(binding=2 << 20, buffer=1 << 20)])
def test_a_rope_table_that_no_binding_holds_is_refused(limits: Limits) -> None:
    with pytest.raises(PlanError, match=r"rope's table for 32768 positions takes 2 MiB; a smaller context"):
        plan_of("llama-tied.f32", ctx=32768, rows=1, limits=limits)


def test_operators_without_a_shader_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shaders = {op: s for op, s in lowering.SHADERS.items() if op not in ("rope", "mask")}
    monkeypatch.setattr(lowering, "SHADERS", shaders)
    with pytest.raises(PlanError, match=r"no shader computes mask, rope$"):
        plan_of("llama-tied.f32")


def test_kv_types_that_heads_do_not_fit_are_refused() -> None:
    with pytest.raises(PlanError, match="heads of 16 numbers can't be kept as q8_0"):
        plan_of("llama-tied.f32", kv_type="q8_0")


def test_more_buffers_than_a_shader_may_have_are_refused() -> None:
    _, plan = plan_of("llama-tied.f32", limits=Limits(bindings=4))
    with pytest.raises(PlanError, match="mask needs 5 buffers"):
        plan.schedule("body", 1, 1)


def test_steps_are_as_wide_as_their_scores_allow() -> None:
    graph = graph_of(tiny("llama-tied.f32"))
    heads = 4
    sizes = {"slots": 1, "cells": 512}
    for room, rows in (
        (1 << 30, 256),
        (256 * 4 * heads * 512, 256),
        (256 * 4 * heads * 512 - 1, 128),
        (1, 1),
    ):
        options = PlanOptions(sizes, 512, 256, limits=Limits(binding=room, buffer=1 << 30))
        assert widest_step(graph, options) == rows
