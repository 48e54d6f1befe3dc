"""Whole models in the browser: their shaders compile there, and their tokens are the expected ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import ALL, CTX, Tiny, tiny
from tests.tolerances import WEBGPU_F32_KV
from tests.web.browser import BrowserPage
from wgllm import models
from wgllm.backends.fills import packed_file
from wgllm.cache import cell_counts
from wgllm.formats.gguf import open_gguf
from wgllm.lowering import PlanOptions, lower, prepared
from wgllm.plan import Plan

ROWS = 16


def planned(
    path: Path, ctx: int, *, software: bool = False
) -> tuple[Plan, np.ndarray[Any, np.dtype[np.uint8]]]:
    """The plan of a model, with schedules to read a prompt and to go on; and its packed weights."""
    with open_gguf(path) as file:
        built = models.build(file, ctx)
        graph = built.graph
        sizes = cell_counts(graph.windows, ctx, ROWS, slots=1)
        plan = lower(prepared(graph), PlanOptions(sizes, ctx, ROWS, software=software, host="tint"))
        for rows in (ROWS, 1):
            plan.schedule("body", rows, ctx)
        plan.schedule("tail", 1)
        plan.lower = None
        return plan, np.concatenate(list(packed_file(plan, built.weights)))


def greedy(page: BrowserPage, path: Path, ids: Sequence[int], count: int, **options: bool) -> list[int]:
    plan, weights = planned(path, CTX, **options)
    return page.greedy(plan, weights, ids, count)


@pytest.mark.parametrize("model", ALL, ids=lambda t: t.id)
def test_the_browser_compiles_every_shader_of_a_plan(browser_page: BrowserPage, model: Tiny) -> None:
    plan, _ = planned(model.path, CTX)
    assert len(plan.kernels) > 10
    assert browser_page.mistakes([k.source for k in plan.kernels]) == []


# A ring that goes round; biases; experts.
@pytest.mark.parametrize("name", ["gemma3.f32", "qwen2.f32", "qwen3_moe.q8_0"])
def test_a_tiny_model_makes_the_expected_tokens(browser_page: BrowserPage, name: str) -> None:
    case = tiny(name).cases()[-1]
    margins = case["greedy_margins"]
    sure = next((i for i, m in enumerate(margins) if m < 2 * WEBGPU_F32_KV), len(margins))
    assert sure >= 4
    assert greedy(browser_page, tiny(name).path, case["ids"], sure) == case["greedy"][:sure]


@pytest.mark.model("smollm2")
def test_smollm2_makes_the_expected_tokens(
    browser_page: BrowserPage, model_path: Callable[[str], Path], reference: Callable[[str], Any]
) -> None:
    case = reference("smollm2")["capital"]
    assert min(case["greedy_margins"][:12]) > 2 * WEBGPU_F32_KV
    # The kernels for cards, which tiny models run, take software four times as long.
    assert greedy(browser_page, model_path("smollm2"), case["ids"], 12, software=True) == case["greedy"][:12]
