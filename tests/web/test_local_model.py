"""A model in the page: the browser's engine beside Python's, what it keeps, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.tiny import engine_on, tiny
from tests.web.browser import BrowserPage, Tab
from tests.web.model_server import ModelServer
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.engine import Request, run_request
from wgllm.sampling import SamplingParams

# Few rows a step: fewer shaders, which take seconds to compile here, and small rings that come round.
RINGS, CTX, ROWS = "gemma3.f32", 64, 2
GREEDY = {"temperature": 0, "topK": 40, "topP": 1, "minP": 0}
PIECE = 1 << 16


def ids(n: int, name: str = RINGS) -> list[int]:
    return (tiny(name).cases()[-1]["ids"] * 3)[:n]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    made = ModelServer(tiny(RINGS).path, ctx=CTX, rows=ROWS, piece=PIECE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def loaded(browser_page: BrowserPage, server: ModelServer) -> Iterator[Tab]:
    """A page with the model, which tests share: it comes to each with whatever its cache holds."""
    tab = browser_page.open(server.url, "local")
    tab.evaluate("() => local.load()")
    yield tab
    tab.close()


def reply(tab: Tab, prompt: Sequence[Any], sampling: dict[str, Any], **options: Any) -> dict[str, Any]:
    return tab.evaluate("(a) => local.reply(...a)", [list(prompt), sampling, options])


def expected(
    prompt: Sequence[int], count: int | None, sampling: SamplingParams, name: str = RINGS
) -> tuple[list[int], str]:
    """Python's tokens and text."""
    engine = engine_on(NumpyExecutor(), name, ctx=CTX, largest_step=ROWS)
    request = Request(prompt, count, sampling, continuation=False)
    events = list(run_request(engine, request))
    engine.close()
    return [e.token_id for e in events if e.token_id is not None], "".join(e.text for e in events)


def test_greedy_tokens_and_text_are_those_of_python(loaded: Tab, server: ModelServer) -> None:
    """In a context of which the windows are a part: rings come round."""
    prompt = ids(30)
    got = reply(loaded, prompt, {**GREEDY, "maxTokens": 16})
    tokens, text = expected(prompt, 16, SamplingParams(temperature=0))
    assert got["tokens"] == tokens and len(tokens) == 16
    assert got["text"] == text
    assert got["reason"] == "length"
    stats = got["stats"]
    assert (stats["promptTokens"], stats["generatedTokens"], stats["contextSize"]) == (30, 16, CTX)
    assert stats["contextUsed"] == 45
    assert stats["prefillSeconds"] > 0 and stats["decodeSeconds"] > 0
    assert [p["done"] for p in got["progress"]] == list(range(0, 30, ROWS))
    assert {p["total"] for p in got["progress"]} == {30}


@pytest.mark.parametrize(
    ("asked", "params"),
    [
        (
            {"temperature": 1.5, "topK": 40, "topP": 0.95, "minP": 0.05, "seed": 5},
            {"temperature": 1.5, "seed": 5},
        ),
        (
            {"temperature": 2.0, "topK": 100, "topP": 1, "minP": 0, "seed": 1 << 40},
            {"temperature": 2.0, "top_k": 100, "top_p": 1.0, "min_p": 0.0, "seed": 1 << 40},
        ),
    ],
    ids=["usual", "wide"],
)
def test_drawn_tokens_are_those_of_python(loaded: Tab, asked: dict[str, Any], params: dict[str, Any]) -> None:
    prompt = ids(7)
    tokens, text = expected(prompt, 20, SamplingParams(**params))
    got = reply(loaded, prompt, {**asked, "maxTokens": 20})
    assert got["tokens"] == tokens
    assert got["text"] == text
    assert got["stats"]["seed"] == asked["seed"]


def test_a_second_turn_reads_only_what_is_new(loaded: Tab) -> None:
    first = ids(6)
    made = reply(loaded, first, {**GREEDY, "maxTokens": 5})
    turns = [
        {"role": "user", "content": " ".join(map(str, first))},
        {"role": "assistant", "content": "not this", "tokenIds": made["tokens"]},
        {"role": "user", "content": "7 8 9"},
    ]
    got = reply(loaded, turns, {**GREEDY, "maxTokens": 4})
    prompt = [*first, *made["tokens"], 7, 8, 9]
    assert got["tokens"] == expected(prompt, 4, SamplingParams(temperature=0))[0]
    assert got["stats"]["promptTokens"] == 14
    assert got["stats"]["cachedTokens"] == 10  # the last token of a reply is not read before it is needed
    again = reply(loaded, turns, {**GREEDY, "maxTokens": 4})
    assert again["tokens"] == got["tokens"]
    assert again["stats"]["cachedTokens"] == 13


def test_going_back_further_than_a_ring_goes_reads_the_prompt_again(loaded: Tab) -> None:
    prompt = ids(50)
    reply(loaded, prompt, {**GREEDY, "maxTokens": 4})
    got = reply(loaded, [*prompt[:20], 3, 4], {**GREEDY, "maxTokens": 4})
    assert got["stats"]["cachedTokens"] == 0
    assert got["tokens"] == expected([*prompt[:20], 3, 4], 4, SamplingParams(temperature=0))[0]


def test_a_full_context_ends_the_reply(loaded: Tab) -> None:
    got = reply(loaded, ids(CTX - 3), GREEDY)
    assert (got["reason"], len(got["tokens"]), got["stats"]["contextUsed"]) == ("context", 4, CTX)
    got = reply(loaded, ids(CTX), GREEDY)
    assert (got["reason"], len(got["tokens"])) == ("context", 1)
    script = "(a) => local.failure(() => local.reply(...a))"
    error = loaded.evaluate(script, [ids(CTX + 1), GREEDY])
    assert error["kind"] == "context" and "65 tokens" in error["message"]
    assert loaded.evaluate(script, [[], GREEDY])["kind"] == "request"


def test_a_cancel_keeps_what_was_generated(loaded: Tab) -> None:
    prompt = ids(8)
    got = reply(loaded, prompt, GREEDY, stopAfter=3)
    assert got["reason"] == "cancelled"
    assert 3 <= len(got["tokens"]) < CTX - 8
    after = reply(loaded, [*prompt, *got["tokens"]], {**GREEDY, "maxTokens": 3})
    wanted = expected(prompt, len(got["tokens"]) + 3, SamplingParams(temperature=0))[0]
    assert [*got["tokens"], *after["tokens"]] == wanted
    assert reply(loaded, prompt, GREEDY, stopAfter=0)["reason"] == "cancelled"  # while the prompt is read


def test_a_server_that_was_restarted_is_asked_for_the_plan_again(loaded: Tab, server: ModelServer) -> None:
    """Widths that are not there yet are fetched."""
    before = len(server.schedules)
    server.forget_plans()
    prompt = ids(9)  # ends with a step of one row
    got = reply(loaded, prompt, {"temperature": 1.0, "topK": 1, "topP": 1, "minP": 0, "maxTokens": 2})
    assert got["tokens"] == expected(prompt, 2, SamplingParams(temperature=0))[0]
    assert len(server.schedules) >= before


def test_nothing_was_asked_twice_and_nothing_went_wrong(loaded: Tab, server: ModelServer) -> None:
    assert len(server.schedules) == len(set(server.schedules))
    assert server.asked("/pieces") == 1
    assert loaded.problems == []


# What needs loading again: a model with few shaders.
SMALL = "gpt2.f32"


@pytest.fixture
def small_server() -> Iterator[ModelServer]:
    made = ModelServer(tiny(SMALL).path, ctx=CTX, rows=1, piece=PIECE, key="secret")
    yield made
    made.close()


LOAD = "() => local.load({ key: 'secret' })"


def test_what_was_loaded_once_is_there_after_a_reload(
    browser_page: BrowserPage, small_server: ModelServer
) -> None:
    tab = browser_page.open(small_server.url, "local")
    try:
        assert tab.evaluate("() => local.obstacle()") is None
        small_server.broken += ["cut", "damaged"]
        first = tab.evaluate(LOAD)
        size = first["facts"]["weightsBytes"]
        assert first["facts"]["storedBytes"] >= size > 2 * PIECE
        assert first["facts"]["storeProblem"] is None
        assert first["facts"]["adapter"]["software"] and "WebGPU" in first["facts"]["where"]
        of_weights = [p for p in first["progress"] if p["stage"] == "weights"]
        assert (of_weights[-1]["done"], of_weights[-1]["cached"]) == (size, 0)
        fetched = small_server.asked("/weights")
        assert fetched >= 2

        tab.go(small_server.url)
        damage = """async () => {
            const root = await navigator.storage.getDirectory();
            const folder = await (await root.getDirectoryHandle("wgllm")).getDirectoryHandle("pieces");
            for await (const handle of folder.values()) {
                const bytes = new Uint8Array(await (await handle.getFile()).arrayBuffer());
                bytes[5] ^= 1;
                const writable = await handle.createWritable();
                await writable.write(bytes);
                await writable.close();
                return;
            }
        }"""
        tab.evaluate(damage)
        second = tab.evaluate(LOAD)
        assert small_server.asked("/weights") == fetched + 1
        assert [p for p in second["progress"] if p["stage"] == "weights"][-1]["cached"] >= size - PIECE
        prompt = ids(5, SMALL)
        got = reply(tab, prompt, {**GREEDY, "maxTokens": 5})
        assert got["tokens"] == expected(prompt, 5, SamplingParams(temperature=0), SMALL)[0]

        lost = tab.evaluate("(a) => local.loseAfter(...a)", [prompt, GREEDY, 3])
        assert lost["kind"] == "lost"
        script = "(a) => local.failure(() => local.reply(...a))"
        assert tab.evaluate(script, [prompt, GREEDY])["kind"] == "lost"
        third = tab.evaluate("() => local.again()")
        assert small_server.asked("/weights") == fetched + 1
        assert [p for p in third["progress"] if p["stage"] == "weights"][-1]["cached"] == size
        assert reply(tab, prompt, {**GREEDY, "maxTokens": 5})["tokens"] == got["tokens"]
        told = tab.evaluate(
            """async () => {
                local.lose();
                while (local.told.lost === null) {
                    await new Promise((resolve) => setTimeout(resolve, 5));
                }
                await local.deleteStored();
                return [local.told.lost, await local.storedBytes()];
            }"""
        )
        assert told[0]["kind"] == "lost"
        assert told[1] == 0
    finally:
        tab.close()


def test_less_context_where_it_is_too_much_and_weights_that_are_no_numbers(
    browser_page: BrowserPage, small_server: ModelServer
) -> None:
    small_server.most_ctx = 700
    tab = browser_page.open(small_server.url, "local")
    try:
        small_server.spoiled = True
        got = tab.evaluate("() => local.load({ key: 'secret', ctxSize: 2048 })")
        assert got["facts"]["ctxSize"] == 512
        script = "(a) => local.failure(() => local.reply(...a))"
        for _ in range(2):  # the slot is emptied, and the page may go on
            error = tab.evaluate(script, [[1, 2, 3], GREEDY])
            assert error["kind"] == "numbers"
        small_server.most_ctx = 100
        error = tab.evaluate("() => local.failure(() => local.load({ key: 'secret', ctxSize: 1024 }))")
        assert error["kind"] == "too-large"
        assert tab.evaluate("() => local.failure(() => local.load({ key: 'other' }))")["kind"] == "key"
    finally:
        tab.close()
