"""The routes by which a page that computes by itself gets all it needs: words, plans, shaders, weights."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from wgllm.errors import ModelFileChanged, ModelFileError, UsageError, WgllmError, printable
from wgllm.plan import PlanError, Width
from wgllm.serve.bodies import read_body
from wgllm.serve.errors import error_response, log
from wgllm.serve.model import ServedModel
from wgllm.serve.page_bodies import ChatTokens, Detokenize, PlanWish, SchedulesWish, Tokenize
from wgllm.serve.plans import BrowserPlan, PlanRefused
from wgllm.serve.ranges import UnsatisfiableRange, is_known, wanted_range
from wgllm.serve.refusals import Refused
from wgllm.serve.threads import Lane

# What goes out at a time, so that no slow reader has much of it waiting.
_CHUNK = 256 << 10
# Elements of a chat, lists and objects in messages included: a template may take a millisecond for each.
_MOST_ELEMENTS = 20_000

Endpoint = Callable[[Request], Awaitable[Response]]


def page_routes(model: ServedModel) -> list[Route]:
    """Everything under ``/api`` but what the server computes itself."""
    page = _Page(model)
    plan = "/api/plans/{plan_id}"
    return [
        Route("/api/model", _answering(page.facts), methods=["GET"]),
        Route("/api/vocabulary", _answering(page.vocabulary), methods=["GET"]),
        Route("/api/tokenize", _answering(page.tokenize), methods=["POST"]),
        Route("/api/detokenize", _answering(page.detokenize), methods=["POST"]),
        Route("/api/chat_tokens", _answering(page.chat_tokens), methods=["POST"]),
        Route("/api/plans", _answering(page.make_plan), methods=["POST"]),
        Route(f"{plan}/schedules", _answering(page.schedules), methods=["POST"]),
        Route(f"{plan}/pieces", _answering(page.pieces), methods=["GET"]),
        Route(f"{plan}/weights", _answering(page.weights), methods=["GET"]),  # and HEAD
    ]


class Broken(Exception):
    """Weights that can't be sent to their end. No handler knows it, so that the connection is cut."""


def _answering(endpoint: Endpoint) -> Endpoint:
    """With the model's own errors as refusals."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except PlanRefused as error:
            raise Refused(422, str(error), code=error.code) from None
        except ModelFileChanged as error:
            log.error("%s", error)
            raise Refused(409, str(error), code="model_changed") from None
        except ModelFileError as error:  # a chat template that does not work
            raise Refused(400, str(error), code="model_file") from None

    return answer


class _Page:
    def __init__(self, model: ServedModel) -> None:
        self._model = model
        # Templates come with model files, from anyone: one may take its time, and no more than one is rendered.
        self._chats = Lane("chats", 1)
        self._words = Lane("words", 2)
        # Planning is all Python's: two plans at once would take twice as long, and who generates needs schedules.
        self._plans = Lane("plans", 1)
        self._schedules = Lane("schedules", 2)
        self._packing = Lane("packing", 2)

    async def facts(self, request: Request) -> Response:
        return _json(self._model.facts)

    async def vocabulary(self, request: Request) -> Response:
        table = await self._words.run(self._model.vocabulary)
        headers = {"ETag": table.etag, "Cache-Control": "no-cache"}
        if is_known(request.headers.get("If-None-Match"), table.etag):
            return Response(status_code=304, headers=headers)
        return Response(table.data, media_type="application/octet-stream", headers=headers)

    async def tokenize(self, request: Request) -> Response:
        body = await read_body(request, Tokenize)
        tokens = await self._words.run(
            self._model.tokenize, body.text, add_special=body.add_special, parse_special=body.parse_special
        )
        return _json({"tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        body = await read_body(request, Detokenize)
        return _json({"text": await self._words.run(self._model.detokenize, body.tokens)})

    async def chat_tokens(self, request: Request) -> Response:
        body = await read_body(request, ChatTokens)
        if body.plan is not None and self._model.plans.find(body.plan) is None:
            message = "the server was restarted, perhaps with another model: ask for the plan again"
            raise Refused(409, message, code="other_model")
        messages = [message.model_dump(exclude_unset=True) for message in body.messages]
        shown = [{k: v for k, v in message.items() if k != "token_ids"} for message in messages]
        _check_values([shown, body.tools])
        tokens = await self._chats.run(self._model.chat_tokens, messages, tools=body.tools)
        return _json({"tokens": tokens})

    async def make_plan(self, request: Request) -> Response:
        body = await read_body(request, PlanWish)

        def answer() -> Response:
            plan = self._model.plan(body.limits, software=body.software, ctx_size=body.ctx_size)
            return _json(plan.to_json())

        return await self._plans.run(answer)

    async def schedules(self, request: Request) -> Response:
        plan = self._plan(request)
        body = await read_body(request, SchedulesWish)
        widths = [Width(width.part, width.rows, width.cells) for width in body.widths]

        def answer() -> Response:
            try:
                return _json(plan.schedules(widths))
            except PlanError as error:
                raise UsageError(str(error)) from None

        return await self._schedules.run(answer)

    async def pieces(self, request: Request) -> Response:
        plan, media_type = self._plan(request), "application/x-ndjson"
        if request.method == "HEAD":
            return Response(media_type=media_type)
        await self._packing.run(self._model.check)
        return StreamingResponse(self._hashed(plan), media_type=media_type)

    async def _hashed(self, plan: BrowserPlan) -> AsyncIterator[bytes]:
        file = plan.file
        try:
            for piece in file.pieces:
                sha256 = await self._packing.run(file.sha256, piece)
                yield _line(
                    {
                        "at": piece.at,
                        "fill": piece.fill,
                        "offset": piece.offset,
                        "size": piece.size,
                        "sha256": sha256,
                    }
                )
            yield _line({"done": True, "size": file.size})
        except WgllmError as error:  # the status has gone out
            log.error("%s", error)
            yield _line({"error": str(error)})
        except Exception as error:
            yield _line({"error": printable(" ".join(f"{type(error).__name__}: {error}".split()), 400)})
            raise

    async def weights(self, request: Request) -> Response:
        plan = self._plan(request)
        await self._packing.run(self._model.check)
        etag, size = plan.file.etag, plan.file.size
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "no-cache, no-transform"}
        if is_known(request.headers.get("If-None-Match"), etag):
            return Response(status_code=304, headers=headers)
        asked = request.headers.get("Range") if request.method == "GET" else None
        try:
            found = wanted_range(asked, request.headers.get("If-Range"), etag, size)
        except UnsatisfiableRange:
            message = f"the weights have {size} bytes, of which the range has none"
            return error_response(416, message, headers={**headers, "Content-Range": f"bytes */{size}"})
        start, stop = found or (0, size)
        headers["Content-Length"] = str(stop - start)
        if found is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        media_type = "application/octet-stream"
        if request.method == "HEAD":
            return Response(headers=headers, media_type=media_type)
        body = self._packed(plan, start, stop)
        return StreamingResponse(body, 206 if found else 200, headers, media_type)

    async def _packed(self, plan: BrowserPlan, start: int, stop: int) -> AsyncIterator[memoryview]:
        for piece, inside in plan.file.between(start, stop):
            try:
                data = memoryview(await self._packing.run(plan.file.data, piece))[inside]
            except WgllmError as error:
                raise Broken(str(error)) from error
            for at in range(0, len(data), _CHUNK):
                yield data[at : at + _CHUNK]

    def _plan(self, request: Request) -> BrowserPlan:
        plan = self._model.plans.find(request.path_params["plan_id"])
        if plan is None:
            message = "the server does not know this plan (any more): ask for it again"
            raise Refused(404, message, code="unknown_plan")
        return plan


def _json(value: Any) -> Response:
    """In the fewest bytes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), media_type="application/json")


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _check_values(value: Any) -> None:
    """Raises UsageError for too many elements, and for numbers that JSON does not have."""
    count, stack = 0, [value]
    while stack:
        item = stack.pop()
        count += 1
        if count + len(stack) > _MOST_ELEMENTS:
            raise UsageError(f"messages: more than {_MOST_ELEMENTS} elements are too many")
        if isinstance(item, float) and not math.isfinite(item):
            raise UsageError(f"messages: {item} is no number of JSON's")
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list):
            stack += item
