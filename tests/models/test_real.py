"""The models of the catalogue against transformers' logits, tokens and perplexity on the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.conftest import DATA, REFERENCE_FILES
from tests.tolerances import NUMPY_REAL, PERPLEXITY_NLL
from wgllm.llm import Llm

MODELS = [pytest.param(name, marks=pytest.mark.model(name)) for name in REFERENCE_FILES]


@pytest.fixture(scope="module")
def llm(request: pytest.FixtureRequest, model_path: Callable[[str], Path]) -> Iterator[Llm]:
    with wgllm.load(model_path(request.param)) as loaded:
        loaded.name = request.param  # type: ignore[attr-defined]
        yield loaded


def prompts(reference: Callable[[str], Any], llm: Llm) -> dict[str, Any]:
    found: dict[str, Any] = reference(llm.name)  # type: ignore[attr-defined]
    assert len(found) >= 2
    return found


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


@pytest.mark.parametrize("llm", MODELS, indirect=True)
def test_logits_equal_the_reference_at_every_position(
    llm: Llm,
    reference: Callable[[str], Any],
    model_path: Callable[[str], Path],
    measured: Callable[..., None],
) -> None:
    for name, case in prompts(reference, llm).items():
        ids = case["ids"]
        logits = llm.logits(ids)
        listed = np.take_along_axis(logits, np.array(case["top_ids"]), axis=1)
        worst = np.abs(listed - np.array(case["top_logits"], np.float32)).max()
        print(f"{name}: {len(ids)} positions, worst logit {worst:.1e} off")
        assert worst < NUMPY_REAL
        measured(model_path(llm.name), worst)  # type: ignore[attr-defined]
        nll = -log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]].mean()
        assert abs(nll - case["nll"]) < PERPLEXITY_NLL


@pytest.mark.parametrize("llm", MODELS, indirect=True)
def test_greedy_text_equals_the_reference(llm: Llm, reference: Callable[[str], Any]) -> None:
    for case in prompts(reference, llm).values():
        n = len(case["greedy"])
        events = list(llm.generate(case["text"], max_tokens=n, temperature=0, ignore_eos=True))
        made = [e.token_id for e in events if e.token_id is not None]
        sure = next((i for i, m in enumerate(case["greedy_margins"]) if m < 2 * NUMPY_REAL), n)
        assert sure >= n // 2
        assert made[:sure] == case["greedy"][:sure]
        if sure == n:
            assert "".join(e.text for e in events) == case["greedy_text"]


@pytest.mark.parametrize("llm", MODELS, indirect=True)
def test_chat_prompts_equal_the_reference(llm: Llm) -> None:
    chats = json.loads((DATA / "real" / "chat.json").read_text(encoding="utf-8"))
    for case in chats.get(REFERENCE_FILES[llm.name], {}).values():  # type: ignore[attr-defined]
        assert llm.template.render(case["messages"]) == case["text"]
        assert llm.chat_tokens(case["messages"]) == case["ids"]


@pytest.mark.model("smollm2")
def test_a_second_turn_of_a_chat_reuses_the_first(model_path: Callable[[str], Path]) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    with wgllm.load(model_path("smollm2"), ctx_size=512) as llm:
        reply = "".join(e.text for e in llm.chat(messages, max_tokens=12, temperature=0))
        assert reply.strip()
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "Another one."}]
        *_, last = llm.chat(messages, max_tokens=4, temperature=0)
    assert last.stats is not None
    assert last.stats.cached_tokens > 0.6 * last.stats.prompt_tokens


@pytest.mark.model("smollm2")
def test_chunks_and_row_blocks_give_the_same_logits(
    model_path: Callable[[str], Path], reference: Callable[[str], Any]
) -> None:
    ids = reference("smollm2")["long"]["ids"][:40]
    with wgllm.load(model_path("smollm2"), ctx_size=512) as llm:
        whole = llm.logits(ids)
        for chunk in (1, 7, 24):
            llm.engine.largest_step = chunk  # type: ignore[attr-defined]
            assert np.abs(llm.logits(ids) - whole).max() < NUMPY_REAL
    with wgllm.load(model_path("smollm2"), ctx_size=512, memory=50_000_000) as small:
        assert np.abs(small.logits(ids) - whole).max() < NUMPY_REAL


LONG = [pytest.param(name, marks=pytest.mark.model(name)) for name in ("smollm2", "gemma3:270m")]


@pytest.mark.last
@pytest.mark.parametrize("name", LONG)
def test_long_prompts_equal_the_reference(
    request: pytest.FixtureRequest, model_path: Callable[[str], Path], name: str
) -> None:
    """Thousands of tokens: rope far out, and rings of a window that have gone round many times."""
    if request.config.getoption("--models") != "all":
        pytest.skip("takes minutes: needs --models all")
    case = json.loads((DATA / "real" / "long.json").read_text(encoding="utf-8"))[name]
    ids, positions = case["ids"], case["positions"]
    with wgllm.load(model_path(name), backend="numpy", ctx_size=len(ids)) as llm:
        logits = llm.logits(ids, positions)
    listed = np.take_along_axis(logits, np.array(case["top_ids"]), axis=1)
    off = np.abs(listed - np.array(case["top_logits"], np.float32)).max(axis=1)
    print(f"{name}: " + ", ".join(f"{at + 1}: {o:.1e}" for at, o in zip(positions, off, strict=True)))
    assert positions[-1] == len(ids) - 1
    assert off.max() < NUMPY_REAL
