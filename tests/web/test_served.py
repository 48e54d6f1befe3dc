"""A browser computes with what the server gives it by HTTP: the plan, its schedules and its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.tiny import tiny
from tests.tolerances import WEBGPU_F32_KV
from tests.web.browser import BrowserPage
from wgllm.plan import Plan
from wgllm.serve.model import ServedModel
from wgllm.serve.page_routes import page_routes


def fetched(model: ServedModel, *, software: bool) -> tuple[Plan, bytes]:
    """The plan for the limits that every browser has, with schedules to read a prompt and to go on; the weights."""
    with TestClient(Starlette(routes=page_routes(model))) as client:
        told = client.post("/api/plans", json={"limits": {}, "software": software}).json()
        plan = f"/api/plans/{told['id']}"
        cells = told["ctx_size"]
        widths = [{"part": "body", "rows": rows, "cells": cells} for rows in (told["rows"], 1)]
        answer = client.post(
            f"{plan}/schedules", json={"widths": [*widths, {"part": "tail", "rows": 1}]}
        ).json()
        return Plan.from_json({**told["plan"], **answer}), client.get(f"{plan}/weights").content


def test_a_ring_that_goes_round_makes_the_expected_tokens(browser_page: BrowserPage) -> None:
    model = tiny("gemma3.f32")
    case = model.cases()[-1]
    margins = case["greedy_margins"]
    sure = next((i for i, m in enumerate(margins) if m < 2 * WEBGPU_F32_KV), len(margins))
    assert sure >= 4
    plan, weights = fetched(ServedModel.open(str(model.path), offline=True), software=True)
    assert browser_page.greedy(plan, weights, case["ids"], sure) == case["greedy"][:sure]


@pytest.mark.model("smollm2")
def test_smollm2_makes_the_expected_tokens(
    browser_page: BrowserPage, model_path: Callable[[str], Path], reference: Callable[[str], Any]
) -> None:
    case = reference("smollm2")["capital"]
    plan, weights = fetched(ServedModel.open(str(model_path("smollm2"))), software=True)
    assert browser_page.greedy(plan, weights, case["ids"], 4) == case["greedy"][:4]
