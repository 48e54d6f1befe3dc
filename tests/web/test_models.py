"""Whole models in the browser, by the server's plan for the limits that every browser has: their shaders compile, and
with the kernels for cards, which are not those for software, tiny models make the expected tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.tiny import ALL, CTX, Tiny, tiny
from tests.tolerances import WEBGPU_F32_KV
from tests.web.browser import BrowserPage
from wgllm.plan import Width
from wgllm.serve.model import ServedModel
from wgllm.serve.plans import BrowserPlan


@contextlib.contextmanager
def planned(path: str) -> Iterator[BrowserPlan]:
    with contextlib.closing(ServedModel.open(path, offline=True)) as model:
        yield model.plan({}, software=False, ctx_size=CTX)


@pytest.mark.parametrize("model", ALL, ids=lambda t: t.id)
def test_the_browser_compiles_every_shader_of_a_plan(browser_page: BrowserPage, model: Tiny) -> None:
    with planned(str(model.path)) as made:
        kernels = made.plan.kernels
    assert len(kernels) > 10
    assert browser_page.mistakes([k.source for k in kernels]) == []


# Biases; experts.
@pytest.mark.parametrize("name", ["qwen2.f32", "qwen3_moe.q8_0"])
def test_a_tiny_model_makes_the_expected_tokens(
    browser_page: BrowserPage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wgllm.serve.plans.STEP_ROWS", 16)
    case = tiny(name).cases()[-1]
    margins = case["greedy_margins"]
    sure = next((i for i, m in enumerate(margins) if m < 2 * WEBGPU_F32_KV), len(margins))
    assert sure >= 4
    with planned(str(tiny(name).path)) as made:
        plan, file = made.plan, made.file
        widths = [Width("body", rows, plan.cells) for rows in (plan.rows, 1)]
        told = {**made.facts, **made.schedules([*widths, Width("tail", 1)])}
        weights = b"".join(map(file.data, file.pieces))
    assert browser_page.greedy(told, weights, case["ids"], sure) == case["greedy"][:sure]
