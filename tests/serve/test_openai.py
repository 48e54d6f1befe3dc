"""OpenAI's routes as its own client sees them, with a real model on a real port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.in_thread import PATIENCE
from tests.serve.running import Running, running
from tests.tiny import tiny
from wgllm.serve.engine_host import EngineHost

MODEL = tiny("qwen2.f32").path
HELLO: list[Any] = [{"role": "user", "content": "Hello <|im_end|> there"}]
LONG: dict[str, Any] = {"extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    options = {"backend": "numpy", "ctx_size": 512, "batch_size": 16}
    with running(lambda: EngineHost(str(MODEL), options, queue_size=20)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE
    ) as client:
        yield client


def chat(client: openai.OpenAI, text: str = "Hello", **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 12, **options}
    messages = options.pop("messages", [{"role": "user", "content": text}])
    return client.chat.completions.create(model="gpt-4o", messages=messages, **options)


def events(server: Running, body: dict[str, Any], path: str = "chat/completions") -> list[Any]:
    """The stream's objects as they are, but for [DONE]."""
    response = httpx.post(f"{server.url}/v1/{path}", json={**body, "stream": True}, timeout=PATIENCE)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith(":")]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "wgllm")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other:Q4")
    assert caught.value.code == "model_not_found"


def test_chat(server: Running, client: openai.OpenAI) -> None:
    answer = chat(client, messages=HELLO, **LONG)
    choice, usage = answer.choices[0], answer.usage
    tokens = server.worker.chat_tokens(HELLO).result(PATIENCE)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.model == "tiny"  # whatever the body named
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content and choice.logprobs is None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(tokens), 12)
    assert usage.total_tokens == len(tokens) + 12 and usage.prompt_tokens_details.cached_tokens == 0
    timings = answer.timings
    assert (timings["prompt_n"], timings["cache_n"], timings["predicted_n"]) == (len(tokens), 0, 12)
    assert timings["prompt_per_second"] > 0 and timings["predicted_ms"] > 0
    assert (answer.context_used, answer.context_size) == (len(tokens) + 11, 512)
    assert answer.ended_by == "length"


@pytest.mark.parametrize("usage", [False, True])
def test_chat_streamed(client: openai.OpenAI, usage: bool) -> None:
    whole = chat(client, **LONG)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(chat(client, stream=True, **options, **LONG))
    if usage:
        last = chunks.pop()
        assert not last.choices and last.usage.completion_tokens == 12
        assert last.timings["predicted_n"] == 12
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1].timings["predicted_n"] == 12 and chunks[-1].context_size == 512
    assert len({c.id for c in chunks}) == 1 and all(c.object == "chat.completion.chunk" for c in chunks)
    assert all(c.usage is None for c in chunks)


def test_the_asynchronous_client(server: Running) -> None:
    async def talk() -> tuple[str, str]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=PATIENCE) as client:
            answer = await client.chat.completions.create(
                model="m", messages=HELLO, temperature=0, max_tokens=9
            )
            stream = await client.chat.completions.create(
                model="m", messages=HELLO, temperature=0, max_tokens=9, stream=True
            )
            parts = [c.choices[0].delta.content or "" async for c in stream]
        return answer.choices[0].message.content or "", "".join(parts)

    whole, streamed = asyncio.run(talk())
    assert whole and streamed == whole


def test_completions(server: Running, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "m", "temperature": 0, "extra_body": {"ignore_eos": True}}
    text = "The <|im_start|> of"
    answer = client.completions.create(prompt=text, **options)
    tokens = server.worker.tokenize(text, parse_special=True).result(PATIENCE)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.usage is not None and answer.usage.prompt_tokens == len(tokens)
    assert answer.usage.completion_tokens == 16  # OpenAI's default
    for same in (tokens, [text], [tokens]):
        again = client.completions.create(prompt=same, **options)  # type: ignore[arg-type]
        assert again.choices[0].text == answer.choices[0].text
    chunks = list(client.completions.create(prompt=text, stream=True, **options))
    assert "".join(c.choices[0].text for c in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    plain = chat(client, **LONG).choices[0].message.content
    answer = chat(client, logprobs=True, top_logprobs=3, **LONG).choices[0]
    seen = answer.logprobs.content
    assert answer.message.content == plain and len(seen) == 12
    assert b"".join(bytes(t.bytes) for t in seen).decode("utf-8", "replace") == plain
    for token in seen:
        assert token.token == bytes(token.bytes).decode("utf-8", "replace")
        top = token.top_logprobs
        assert len(top) == 3 and (top[0].token, top[0].logprob) == (token.token, token.logprob)  # greedy
        assert 0 >= top[0].logprob >= top[1].logprob >= top[2].logprob
    chunks = list(chat(client, logprobs=True, stream=True, **LONG))
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [(t.token, t.logprob, t.top_logprobs) for t in streamed] == [
        (t.token, t.logprob, []) for t in seen
    ]


def test_logprobs_of_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt="The", logprobs=2, temperature=0, max_tokens=5)
    seen = answer.choices[0].logprobs
    assert seen is not None and seen.tokens and seen.token_logprobs and seen.text_offset
    assert len(seen.tokens) == len(seen.token_logprobs) == len(seen.top_logprobs or ()) == 5
    assert seen.text_offset == [len("".join(seen.tokens[:i])) for i in range(5)]
    for token, logprob, top in zip(seen.tokens, seen.token_logprobs, seen.top_logprobs or (), strict=True):
        assert top and max(top.values()) == logprob == top[token]


def test_stop_strings(client: openai.OpenAI) -> None:
    text = chat(client, **LONG).choices[0].message.content
    stop = text[4:7]
    expected = text[: text.index(stop)]
    for stops in (stop, ["no such text", stop]):
        choice = chat(client, stop=stops, **LONG).choices[0]
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    chunks = list(chat(client, stop=stop, stream=True, **LONG))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_seeds_and_samplers(client: openai.OpenAI) -> None:
    hot: dict[str, Any] = {"temperature": 2.0, "extra_body": {"top_k": 0, "min_p": 0, "ignore_eos": True}}

    def said(**options: Any) -> str:
        text: str = chat(client, **{**hot, **options}).choices[0].message.content
        return text

    assert said(seed=1) == said(seed=1) != said(seed=2)
    chosen = chat(client, **LONG, logprobs=True).choices[0]
    with_bias = chat(client, **LONG, logit_bias={"17": 1000}, logprobs=True).choices[0]
    assert len({t.token for t in with_bias.logprobs.content}) == 1
    assert chosen.message.content != with_bias.message.content
    greedy = chat(client, temperature=1.5, extra_body={"top_k": 1, "ignore_eos": True})
    assert greedy.choices[0].message.content == chosen.message.content
    penalized = chat(client, **LONG, frequency_penalty=2.0, presence_penalty=2.0).choices[0]
    assert penalized.message.content != chosen.message.content


def test_forms_of_messages(server: Running, client: openai.OpenAI) -> None:
    def tokens(*messages: dict[str, Any], **more: Any) -> int:
        count: int = chat(client, messages=list(messages), max_tokens=1, **more).usage.prompt_tokens
        return count

    def expected(*messages: dict[str, Any], **more: Any) -> int:
        return len(server.worker.chat_tokens(messages, **more).result(PATIENCE))

    system, user = {"role": "system", "content": "Be\nbrief"}, {"role": "user", "content": "Hi"}
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]
    assert tokens(system, user) == expected(system, user)
    assert tokens({"role": "developer", "content": "Be\nbrief"}, user) == expected(system, user)
    assert tokens({"role": "system", "content": parts}, user) == expected(system, user)
    call = {"name": "add", "arguments": '{"a": 1}'}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": call}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": "2"}
    assert tokens(user, called, result) > expected(user)
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    assert tokens(user, tools=[tool]) == expected(user, tools=[tool])
    assert tokens(user, tools=[tool], tool_choice="none") == expected(user)


def test_errors_have_the_clients_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, "word " * 2000)
    assert caught.value.code == "context_length_exceeded" and "512 tokens" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="512 tokens"):
        list(chat(client, "word " * 2000, stream=True))
    for options, param in (
        ({"n": 2}, "n"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"guided_json": {"type": "object"}}}, "guided_json"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
         "messages[0].content[0].type"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, **options)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_value")
        assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="token id 10000000 is outside the vocabulary"):
        client.completions.create(model="m", prompt=[10_000_000])
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        chat(client, logit_bias={"10000000": 1})
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        client.completions.create(model="m", prompt="")


def test_fields_that_nobody_knows_are_ignored(client: openai.OpenAI) -> None:
    more = {
        "cache_prompt": True,
        "user": "u",
        "metadata": {"a": [1]},
        "n": 1,
        "response_format": {"type": "text"},
    }
    answer = chat(client, extra_body={**more, "max_tokens": -1}, max_completion_tokens=2)
    assert answer.usage.completion_tokens <= 2


def test_progress(server: Running) -> None:
    said = "".join(f"{i} and " for i in range(40))
    body = {
        "messages": [{"role": "user", "content": said}],
        "temperature": 0,
        "max_tokens": 8,
        "ignore_eos": True,
        "progress": True,
    }
    made = events(server, body)
    told = [e for e in made if e["object"] == "wgllm.progress"]
    chunks = [e for e in made if e["object"] == "chat.completion.chunk"]
    assert made[: len(told)] == told  # all before the first token
    assert told and {e["stage"] for e in told} == {"prefill"}
    assert all(0 <= e["done"] <= e["total"] and e["label"] == "" for e in told)
    ids = [i for chunk in chunks for i in chunk.get("token_ids", ())]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert len(ids) == 8 == chunks[-1]["timings"]["predicted_n"]
    assert server.worker.detokenize(ids).result(PATIENCE) == text
    assert chunks[-1]["seed"] >= 0
    assert not any("token_ids" in e for e in events(server, {**body, "progress": False}))


def test_a_second_turn_reads_what_is_new(server: Running) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "One two three four five six. " * 8}]
    (word,) = server.worker.tokenize("e", add_special=False).result(PATIENCE)

    def turn(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        body = {
            "messages": messages,
            "max_tokens": 10,
            "logit_bias": {word: 100},
            "progress": True,
            **options,
        }
        made = events(server, body)
        parts = [e for e in made if e["object"] == "chat.completion.chunk"]
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in parts)
        ids = [i for e in parts for i in e.get("token_ids", ())]
        timings: dict[str, Any] = parts[-1]["timings"]
        return {"role": "assistant", "content": text, "token_ids": ids}, timings

    for options, exact in (
        ({"temperature": 1.0}, False),
        ({"temperature": 0}, True),
        ({"temperature": 1.0, "seed": 1}, True),
        ({"temperature": 0, "cache_prompt": True}, False),
        ({"temperature": 1.0, "cache_prompt": False}, True),
    ):
        del messages[1:]
        reply, first = turn(**options)
        messages += [reply, {"role": "user", "content": "And now?"}]
        _, second = turn(**options)
        prompt = first["cache_n"] + first["prompt_n"]
        if exact:  # whole steps of 16 tokens of what was read as a prompt
            assert second["cache_n"] == prompt // 16 * 16
        else:  # all but the reply's last token, which nobody had read yet
            assert second["cache_n"] == prompt + 9


def test_requests_at_once_answer_as_one_by_one(server: Running) -> None:
    # Prompts share beginnings of several lengths, so that what is in the cache depends on the order.
    base = "Tell me a story about the sea and the ships that sail on it. "
    prompts = [base * (1 + i % 4) + ("again " * (i % 3)) for i in range(12)]

    def body(text: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {
            "messages": messages,
            "temperature": 0,
            "max_tokens": 24,
            "ignore_eos": True,
            "logprobs": True,
        }

    async def ask(client: httpx.AsyncClient, text: str) -> Any:
        response = await client.post(f"{server.url}/v1/chat/completions", json=body(text))
        return response.json()["choices"][0]

    async def at_once(texts: list[str]) -> list[Any]:
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            return await asyncio.gather(*(ask(client, text) for text in texts))

    alone = [asyncio.run(at_once([text]))[0] for text in prompts]
    assert len({a["message"]["content"] for a in alone}) > 3
    backwards = asyncio.run(at_once(prompts[::-1]))[::-1]
    assert backwards == alone  # with every bit of their probabilities
