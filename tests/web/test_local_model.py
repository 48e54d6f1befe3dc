"""A model in the page: the browser's engine beside Python's, what it keeps, and what goes wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.serve.stand_ins import KEY
from tests.tiny import engine_on, tiny
from tests.web.chromium import Chromium, Tab
from tests.web.served import NotNumbers, Served, served
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.engine import Request, run_request
from wgllm.sampling import SamplingParams

# Few rows a step: fewer shaders, which take seconds to compile here, and small rings that come round.
RINGS, CTX, ROWS = "gemma3.f32", 64, 4
GREEDY = {"temperature": 0, "topK": 40, "topP": 1, "minP": 0}
PIECE = 1 << 16
SCRIPT = Path(__file__).with_name("local_page.js")
TEXT = (
    "The quick brown fox jumps over the lazy dog while seven wizards boil black ink and write letters home."
)
# What the model says to these are characters; to most else it says bytes that are none.
ANSWERED, ANSWERED_LONG = "seven wiza", "he lazy do"

Messages = list[dict[str, Any]]


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def tokens_of(server: Served, messages: Messages) -> list[int]:
    """The prompt."""
    told = [{"token_ids" if k == "tokenIds" else k: v for k, v in m.items()} for m in messages]
    return server.model.chat_tokens(told)


def prompt(server: Served, n: int) -> Messages:
    """A message that is a prompt of ``n`` tokens."""
    texts = (TEXT[:stop] for stop in range(len(TEXT) + 1))
    return next(user(text) for text in texts if len(tokens_of(server, user(text))) == n)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with few_rows(ROWS), served(tiny(RINGS).path, ctx=CTX, piece=PIECE) as made:
        yield made


@contextlib.contextmanager
def few_rows(rows: int) -> Iterator[None]:
    """In a step of any plan that the server makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wgllm.serve.plans.STEP_ROWS_SOFTWARE", rows)
        yield


def opened(chromium: Chromium, server: Served) -> Tab:
    """A page of the server's that does nothing by itself, with ``window.local``."""
    return chromium.tab(f"{server.url}/health", "local", script=SCRIPT)


@pytest.fixture(scope="module")
def loaded(chromium: Chromium, server: Served) -> Iterator[Tab]:
    """A page with the model, which tests share: it comes to each with whatever its cache holds."""
    tab = opened(chromium, server)
    tab.evaluate("() => local.load()")
    yield tab
    tab.close()


def reply(tab: Tab, messages: Messages, sampling: dict[str, Any], **options: Any) -> dict[str, Any]:
    return tab.evaluate("(a) => local.reply(...a)", [messages, sampling, options])


def failure(tab: Tab, messages: Messages) -> dict[str, Any]:
    return tab.evaluate("(a) => local.failure(() => local.reply(...a))", [messages, GREEDY])


def expected(
    prompt: Sequence[int], count: int | None, sampling: SamplingParams, name: str = RINGS
) -> tuple[list[int], str]:
    """Python's tokens and text."""
    engine = engine_on(NumpyExecutor(), name, ctx=CTX, largest_step=ROWS)
    request = Request(prompt, count, sampling, continuation=False)
    events = list(run_request(engine, request))
    engine.close()
    return [e.token_id for e in events if e.token_id is not None], "".join(e.text for e in events)


def greedy(prompt: Sequence[int], count: int, name: str = RINGS) -> list[int]:
    return expected(prompt, count, SamplingParams(temperature=0), name)[0]


def test_a_server_that_was_restarted_is_asked_for_the_plan_again(loaded: Tab, server: Served) -> None:
    """Where a width is needed that nothing before did."""
    if any(width.rows == 2 for width in server.schedules):  # another test came first
        server.schedules.clear()
        loaded.evaluate("() => local.load()")
    assert {width.rows for width in server.schedules} == {1, ROWS} != {1, 2}
    plans, refused = server.asked("/plans"), server.refused
    server.restart()
    asked = prompt(server, ROWS + 2)
    got = reply(loaded, asked, {**GREEDY, "maxTokens": 2})
    assert got["tokens"] == greedy(tokens_of(server, asked), 2)
    assert 2 in {width.rows for width in server.schedules}
    assert server.asked("/plans") == plans + 1
    assert server.refused == refused + 1


def test_greedy_tokens_and_text_are_those_of_python(loaded: Tab, server: Served) -> None:
    """In a context of which the windows are a part: rings come round."""
    asked = prompt(server, 30)
    got = reply(loaded, asked, {**GREEDY, "maxTokens": 16})
    tokens, text = expected(tokens_of(server, asked), 16, SamplingParams(temperature=0))
    assert got["tokens"] == tokens and len(tokens) == 16
    assert got["text"] == text
    assert got["reason"] == "length"
    stats = got["stats"]
    assert (stats["promptTokens"], stats["generatedTokens"], stats["contextSize"]) == (30, 16, CTX)
    assert stats["contextUsed"] == 45
    assert stats["prefillSeconds"] > 0 and stats["decodeSeconds"] > 0
    new = 30 - stats["cachedTokens"]
    assert [p["done"] for p in got["progress"]] == list(range(0, new, ROWS))
    assert {p["total"] for p in got["progress"]} == {new} and new > CTX // 3


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
def test_drawn_tokens_are_those_of_python(
    loaded: Tab, server: Served, asked: dict[str, Any], params: dict[str, Any]
) -> None:
    messages = prompt(server, 7)
    tokens, text = expected(tokens_of(server, messages), 20, SamplingParams(**params))
    got = reply(loaded, messages, {**asked, "maxTokens": 20})
    assert got["tokens"] == tokens
    assert got["text"] == text
    assert got["stats"]["seed"] == asked["seed"]


def test_a_second_turn_reads_only_what_is_new(loaded: Tab, server: Served) -> None:
    first = user(ANSWERED)
    made = reply(loaded, first, {**GREEDY, "maxTokens": 5})
    answer = {"role": "assistant", "content": made["text"]}
    turns = [*first, {**answer, "tokenIds": made["tokens"]}, *user(" and then")]
    asked = tokens_of(server, turns)
    before = [*tokens_of(server, first), *made["tokens"]]
    assert asked[: len(before)] == before
    assert tokens_of(server, [*first, answer, *user(" and then")]) != asked  # what tokenIds are for
    got = reply(loaded, turns, {**GREEDY, "maxTokens": 4})
    assert got["tokens"] == greedy(asked, 4)
    assert got["stats"]["promptTokens"] == len(asked)
    assert (
        got["stats"]["cachedTokens"] == len(before) - 1
    )  # a reply's last token is not read before it is needed
    assert {(p["cached"], p["total"]) for p in got["progress"]} == {
        (len(before) - 1, len(asked) - len(before) + 1)
    }
    again = reply(loaded, turns, {**GREEDY, "maxTokens": 4})
    assert again["tokens"] == got["tokens"]
    assert again["stats"]["cachedTokens"] == len(asked) - 1


def test_going_back_further_than_a_ring_goes_reads_the_prompt_again(loaded: Tab, server: Served) -> None:
    reply(loaded, prompt(server, 50), {**GREEDY, "maxTokens": 4})
    shorter = user(prompt(server, 20)[0]["content"] + "zz")
    asked = tokens_of(server, shorter)
    assert asked[:15] == tokens_of(server, prompt(server, 50))[:15]
    got = reply(loaded, shorter, {**GREEDY, "maxTokens": 4})
    assert got["stats"]["cachedTokens"] == 0
    assert got["tokens"] == greedy(asked, 4)


def test_a_full_context_ends_the_reply(loaded: Tab, server: Served) -> None:
    got = reply(loaded, prompt(server, CTX - 3), GREEDY)
    assert (got["reason"], len(got["tokens"]), got["stats"]["contextUsed"]) == ("context", 4, CTX)
    got = reply(loaded, prompt(server, CTX), GREEDY)
    assert (got["reason"], len(got["tokens"])) == ("context", 1)
    error = failure(loaded, prompt(server, CTX + 1))
    assert error["kind"] == "context" and "65 tokens" in error["message"]


def test_a_cancel_keeps_what_was_generated(loaded: Tab, server: Served) -> None:
    asked = user(ANSWERED_LONG)
    got = reply(loaded, asked, GREEDY, stopAfter=3)
    assert got["reason"] == "cancelled"
    assert 3 <= len(got["tokens"]) < CTX - 8
    turns = [*asked, {"role": "assistant", "content": got["text"], "tokenIds": got["tokens"]}]
    after = reply(loaded, turns, {**GREEDY, "maxTokens": 3})
    wanted = greedy(tokens_of(server, asked), len(got["tokens"]) + 3)
    assert [*got["tokens"], *after["tokens"]] == wanted
    assert after["stats"]["cachedTokens"] >= len(tokens_of(server, asked))
    assert reply(loaded, asked, GREEDY, stopAfter=0)["reason"] == "cancelled"  # while the prompt is read


def test_a_server_that_has_another_model_makes_no_reply_for_this_one(loaded: Tab, server: Served) -> None:
    refused = server.refused
    server.restart(tiny("qwen2.f32").path)
    try:
        for _ in range(2):
            assert failure(loaded, prompt(server, 9))["kind"] == "other-model"
    finally:
        server.restart(tiny(RINGS).path)
    assert server.refused == refused + 2
    assert len(reply(loaded, prompt(server, 9), {**GREEDY, "maxTokens": 2})["tokens"]) == 2
    assert server.refused == refused + 3


def test_nothing_is_asked_twice_and_nothing_went_wrong(loaded: Tab, server: Served) -> None:
    """In what ran before, too."""
    for n in (30, 31, 30):
        reply(loaded, prompt(server, n), {**GREEDY, "maxTokens": 16})
        asked = len(server.requests)
    assert len(server.schedules) == len(set(server.schedules)) > 4
    reply(loaded, prompt(server, 30), {**GREEDY, "maxTokens": 16})
    assert [path.rsplit("/", 1)[1] for path in server.requests[asked:]] == ["chat_tokens"]
    # A browser tells of each answer of 409.
    refused = [problem for problem in loaded.problems if "409" in problem]
    assert loaded.problems == refused and len(refused) <= server.refused


# What needs loading again: a model with few shaders.
SMALL = "gpt2.f32"


@pytest.fixture
def small_server() -> Iterator[Served]:
    with few_rows(1), served(tiny(SMALL).path, ctx=CTX, piece=PIECE, key=KEY) as made:
        yield made


LOAD = "(key) => local.load({ key })"


def test_what_was_loaded_once_is_there_after_a_reload(chromium: Chromium, small_server: Served) -> None:
    tab = opened(chromium, small_server)
    try:
        assert tab.evaluate("() => local.obstacle()") is None
        small_server.broken += ["cut", "damaged"]
        first = tab.evaluate(LOAD, KEY)
        size = first["facts"]["weightsBytes"]
        assert first["facts"]["storedBytes"] >= size > 2 * PIECE
        assert first["facts"]["storeProblem"] is None
        assert first["facts"]["adapter"]["software"] and "WebGPU" in first["facts"]["where"]
        of_weights = [p for p in first["progress"] if p["stage"] == "weights"]
        assert (of_weights[-1]["done"], of_weights[-1]["cached"]) == (size, 0)
        fetched = small_server.asked("/weights")
        assert fetched >= 2

        tab.go(f"{small_server.url}/health")
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
        second = tab.evaluate(LOAD, KEY)
        assert small_server.asked("/weights") == fetched + 1
        assert [p for p in second["progress"] if p["stage"] == "weights"][-1]["cached"] >= size - PIECE
        asked = prompt(small_server, 5)
        got = reply(tab, asked, {**GREEDY, "maxTokens": 5})
        assert got["tokens"] == greedy(tokens_of(small_server, asked), 5, SMALL)
        assert failure(tab, user(""))["kind"] == "request"  # it has no token that begins a text

        lost = tab.evaluate("(a) => local.loseAfter(...a)", [asked, GREEDY, 3])
        assert lost["kind"] == "lost"
        assert failure(tab, asked)["kind"] == "lost"
        third = tab.evaluate("() => local.again()")
        assert small_server.asked("/weights") == fetched + 1
        assert [p for p in third["progress"] if p["stage"] == "weights"][-1]["cached"] == size
        assert reply(tab, asked, {**GREEDY, "maxTokens": 5})["tokens"] == got["tokens"]
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
    chromium: Chromium, small_server: Served
) -> None:
    small_server.model.most_ctx = 700
    tab = opened(chromium, small_server)
    try:
        small_server.model.plans.store = NotNumbers(piece=PIECE)
        got = tab.evaluate("(key) => local.load({ key, ctxSize: 2048 })", KEY)
        assert got["facts"]["ctxSize"] == 512
        for _ in range(2):  # the slot is emptied, and the page may go on
            error = failure(tab, prompt(small_server, 3))
            assert error["kind"] == "numbers"
        small_server.model.most_ctx = 100
        error = tab.evaluate("(key) => local.failure(() => local.load({ key, ctxSize: 1024 }))", KEY)
        assert error["kind"] == "too-large"
        assert tab.evaluate("() => local.failure(() => local.load({ key: 'other' }))")["kind"] == "key"
    finally:
        tab.close()
