"""Cases of ``wgllm check`` in the browser: every operator, format and KV type, beside NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tolerances import WEB_CASE
from tests.web.browser import BrowserPage
from wgllm.backends.fills import packed_file
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.check_cases import Case, kernel_cases
from wgllm.lowering import PlanOptions, lower, prepared
from wgllm.plan import Plan

# Of products and whole layers, which take long here, those that others have no shader for.
LEFT_OUT = {
    "products F32 64→257",
    "products Q4_0 64→4096",
    "products Q6_K 256→257",
    "layer with a wide MLP",
}
CASES = [case for case in kernel_cases() if case.name not in LEFT_OUT]


def planned(case: Case) -> Plan:
    """With a schedule for each of the case's steps."""
    options = case.options
    plan = lower(
        prepared(case.graph, attention=options.fused_attention),
        PlanOptions(options.sizes, options.positions, options.largest_step, options.kv_type_of, host="tint"),
    )
    for step in case.steps:
        plan.schedule("body", len(step["pos"]), int(step["pos"].max()) + 1)
        if "out_rows" in plan.inputs:
            plan.schedule("tail", len(step["out_rows"]))
    plan.lower = None
    return plan


def test_no_shader_is_left_out() -> None:
    taken: dict[bool, set[str]] = {True: set(), False: set()}
    for case in kernel_cases():
        for kernel in planned(case).kernels:
            taken[case.name in LEFT_OUT].update(name for name, _ in kernel.source.origin)
    assert taken[True] and taken[True] <= taken[False]


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_a_case(browser_page: BrowserPage, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGLLM_FUSE", "0")
    plan = planned(case)
    reference = NumpyExecutor().load(case.graph, case.weights, case.options)
    steps = [{name: array.reshape(-1).tolist() for name, array in step.items()} for step in case.steps]
    weights = np.concatenate([np.zeros(0, np.uint8), *packed_file(plan, case.weights)])
    made = browser_page.run(plan, weights, steps)
    tolerance = WEB_CASE[case.options.kv_type]
    for step, outputs in zip(case.steps, made, strict=True):
        expected = reference.run(step)
        assert outputs.keys() == expected.keys() and expected
        for name, want in expected.items():
            got = outputs[name].reshape(want.shape)
            size = float(np.abs(want).max(initial=0)) or 1.0  # a router's choices may all be 0
            worst = float(np.abs(got - want).max(initial=0)) / size
            assert worst <= tolerance, f"{name}: {worst:.1e} of the largest number"
