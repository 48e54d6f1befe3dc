"""OpenAI's routes: ``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``.

A body may name any model, or none: the server has one, and most clients have a name built in that they send to
whatever server they are pointed at (llama.cpp's server does the same). Answers name the model that is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wgllm.serve.bodies import MOST_TEXT, read_body
from wgllm.serve.engine_host import Ask, EngineHost
from wgllm.serve.openai_replies import ChatForm, Form, StreamedAnswer, TextForm, WholeAnswer
from wgllm.serve.openai_types import ChatRequest, CompletionRequest, Sampled
from wgllm.serve.refusals import Refused
from wgllm.serve.sse import EventStream, Outflow, Whole
from wgllm.worker import Worker


class Named(Protocol):
    """What of a ``ServedModel`` is used here."""

    @property
    def id(self) -> str: ...


def chat_routes(host: EngineHost, model: Named) -> list[Route]:
    """Routes that answer with what ``host`` generates."""
    served = int(time.time())

    def listed() -> dict[str, object]:
        return {"id": model.id, "object": "model", "created": served, "owned_by": "wgllm"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [listed()]})

    async def one_model(request: Request) -> Response:
        if (asked := request.path_params["id"]) != model.id:
            raise Refused(
                404, f"there is no model '{asked[:200]}' here", code="model_not_found", param="model"
            )
        return JSONResponse(listed())

    async def chat(request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        messages, tools = body.template_messages, body.template_tools
        if _characters([messages, tools]) > MOST_TEXT:
            raise Refused(400, f"messages: more than {MOST_TEXT:,} characters are too many", param="messages")
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        top = (body.top_logprobs or 0) if body.logprobs else None

        async def prompt(worker: Worker) -> list[int]:
            return await asyncio.wrap_future(worker.chat_tokens(messages, tools=tools))

        return _answer(host, model, ChatForm(), body, prompt, limit, top)

    async def completion(request: Request) -> Response:
        body = await read_body(request, CompletionRequest)

        async def prompt(worker: Worker) -> list[int]:
            return await _text_prompt(worker, body.only_prompt)

        return _answer(host, model, TextForm(), body, prompt, body.max_tokens, body.logprobs)

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{id:path}", one_model, methods=["GET"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completion, methods=["POST"]),
    ]


def _answer(
    host: EngineHost,
    model: Named,
    form: Form,
    body: Sampled,
    prompt: Callable[[Worker], Awaitable[list[int]]],
    max_tokens: int | None,
    top: int | None,
) -> Response:
    ask = Ask(
        prompt,
        sampling=body.sampling,
        max_tokens=None if max_tokens == -1 else max_tokens,
        stop=body.stop or (),
        logprobs=0 if top is None else max(1, top),
        ignore_eos=body.ignore_eos,
        continuation=isinstance(form, TextForm),
        exact=None if body.cache_prompt is None else not body.cache_prompt,
    )
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage

        async def stream(flow: Outflow) -> None:
            answer = StreamedAnswer(
                host, form, model.id, flow, top_logprobs=top, usage=usage, progress=body.progress
            )
            await host.generate(ask, answer)

        return EventStream(stream)

    async def whole() -> Response:
        answer = WholeAnswer(host, form, model.id, top_logprobs=top)
        await host.generate(ask, answer)
        return JSONResponse(answer.body())

    return Whole(whole)


async def _text_prompt(worker: Worker, prompt: str | list[int]) -> list[int]:
    """The tokens to go on from. Special tokens may be written in the text: whoever sends a bare prompt applies chat
    templates and the like himself."""
    if not isinstance(prompt, str):
        return prompt
    empty = worker.tokenize("")
    tokens = await asyncio.wrap_future(worker.tokenize(prompt, parse_special=True))
    end = (await asyncio.wrap_future(empty))[-1:]
    if len(tokens) > 1 and tokens[-1:] == end:
        tokens.pop()  # the end of a text, which the file asks for, is nothing to go on from
    return tokens


def _characters(value: Any) -> int:
    """Of all texts in plain data."""
    count, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            count += len(item)
        elif isinstance(item, dict):
            stack += [*item, *item.values()]
        elif isinstance(item, list):
            stack += item
    return count
