"""Plans whose products are in splits: what they reserve, bind and count, and that they make what NumPy makes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from wgllm.backends.device import Device
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.check import check_case
from wgllm.check_cases import Case, _Layer, _layer_case
from wgllm.lowering import PlanOptions, lower, prepared, products
from wgllm.plan import Dispatch, Limits, Plan
from wgllm.plan_figures import PlanFigures
from wgllm.product_shape import Choice, Product, Target, default, shape

# Queries and keys are a product, values another, beside them; 17 groups of 32 inputs are not two equal parts.
CASE = _layer_case(
    _Layer("layer in splits", ("Q8_0", "Q4_0"), "f32", head_dim=64, heads=8, kv_heads=2, ff=544, bias=True)
)
ROWS = 33
SPLIT = Choice("matmul", 64, 4, 32, splits=2)
# Room for partial sums, but for no matrix of queries and keys, or of gate and up.
SMALL = 200 << 10


def options_of(case: Case, limits: Limits, choices: dict[Product, Choice]) -> PlanOptions:
    given = case.options
    return PlanOptions(
        given.sizes, given.positions, given.largest_step, given.kv_type_of, limits, choices=choices
    )


def in_splits(case: Case, limits: Limits) -> dict[Product, Choice]:
    """For the products of the widest step that can be."""
    target = Target(limits)
    _, widest = products(prepared(case.graph), options_of(case, limits, {}))
    return {p.bucket: SPLIT for p in widest if p.rows == ROWS and default(p, target).kernel == "matmul"}


def planned(limits: Limits, choices: dict[Product, Choice]) -> Plan:
    plan = lower(prepared(CASE.graph), options_of(CASE, limits, choices))
    plan.schedule("body", ROWS, plan.cells)
    return plan


def body(plan: Plan) -> list[tuple[str, str, Dispatch]]:
    """Operators, entries and dispatches of the widest step."""
    (schedule,) = (s for w, s in plan.schedules.items() if w.part == "body")
    return [(plan.nodes[d.node].op, plan.kernels[d.kernel].entry, d) for d in schedule]


@pytest.mark.parametrize("binding", [128 << 20, SMALL])
def test_each_product_of_a_step_is_two_dispatches(binding: int) -> None:
    limits = Limits(binding=binding)
    plan = planned(limits, in_splits(CASE, limits))
    found = body(plan)
    pairs = [
        (op, a, b)
        for (op, first, a), (_, second, b) in pairwise(found)
        if (first, second) == ("matmul", "matmul_reduce")
    ]
    # Gate and up in shards are multiplied together, which tiles do not do; queries and keys are two shards then.
    whole = ["norm_matmul", "norm_matmul", "matmul_add", "norm_gated", "matmul_add"]
    sharded = ["norm_matmul", "norm_matmul", "norm_matmul", "matmul_add", "matmul_add"]
    assert [op for op, _, _ in pairs] == (sharded if binding == SMALL else whole)
    assert sum(entry == "matmul_reduce" for _, entry, _ in found) == len(pairs)
    for _, first, second in pairs:
        assert first.bindings[2] == second.bindings[0]  # partial sums
        sums, others = first.bindings[2].buffer, [*first.bindings[:2], *second.bindings[1:]]
        assert plan.buffers[sums].role == "scratch"
        assert sums not in {region.buffer for region in others}
        assert first.bindings[2].size <= plan.buffers[sums].size


def test_scratch_does_not_depend_on_a_choice() -> None:
    assert planned(Limits(), {}).buffers == planned(Limits(), in_splits(CASE, Limits())).buffers


def test_a_plan_without_splits_has_the_dispatches_of_products_alone() -> None:
    entries = [entry for op, entry, _ in body(planned(Limits(), {})) if op in ("norm_matmul", "matmul_add")]
    assert entries == ["rms_norm", "matmul", "matmul", "matmul", "matmul"]


def test_partial_sums_count_as_activations() -> None:
    """Written once and read once; everything else is touched as often as without."""
    graph = prepared(CASE.graph)
    choices = in_splits(CASE, Limits())
    traffic, sums = [], 0
    for chosen in ({}, choices):
        plan = planned(Limits(), chosen)
        traffic.append(PlanFigures(plan, graph).schedule(*plan.schedule("body", ROWS, plan.cells)).traffic)
    for product in list(products(graph, options_of(CASE, Limits(), choices)))[1]:
        if product.rows == ROWS:
            sums += -(-shape(product, Target(choices=choices)).scratch // 16) * 16
    assert sums > 0
    assert traffic[1] == replace(traffic[0], activations=traffic[0].activations + 2 * sums)


@pytest.mark.parametrize("binding", [128 << 20, SMALL])
def test_a_layer_in_splits(own_device: Device, binding: int) -> None:
    card = replace(
        own_device,
        adapter=replace(own_device.adapter, kind="discrete"),
        limits={**own_device.limits, "max-storage-buffer-binding-size": binding},
    )
    executor = WebGpuExecutor(card)
    executor.choices = in_splits(CASE, Limits.of(card.limits))
    assert sum(choice.splits > 1 for choice in executor.choices.values()) >= 4
    verdicts = check_case(executor, CASE)
    assert {"norm_matmul", "norm_gated", "matmul_add"} <= {v.op for v in verdicts}
    assert [v for v in verdicts if not v.ok] == []
