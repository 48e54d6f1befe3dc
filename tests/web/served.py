"""A model served as ``wgllm serve`` does, for tests of the page: it is known what was asked, and faults come on
demand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from tests.serve.in_thread import serving
from wgllm.formats.model_file import TensorView
from wgllm.plan import Width
from wgllm.serve.app import create_app
from wgllm.serve.engine_host import EngineHost
from wgllm.serve.model import ServedModel
from wgllm.serve.openai_routes import chat_routes
from wgllm.serve.page_routes import page_routes
from wgllm.serve.plans import BrowserPlan, PlanRefused
from wgllm.serve.settings import Settings
from wgllm.serve.weights import Piece, PieceStore

# Prompts of few tokens, in a small context.
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class NotNumbers(PieceStore):
    """Weights that are NaN."""

    def data(self, model: str, piece: Piece, weights: Mapping[str, TensorView]) -> bytes:
        return b"\xff" * piece.size


class Limited(ServedModel):
    """A model that some contexts are too large for."""

    most_ctx = 1 << 20

    def plan(self, limits: Mapping[str, int], *, software: bool, ctx_size: int | None) -> BrowserPlan:
        if (asked := ctx_size or self.default_ctx) > self.most_ctx:
            raise PlanRefused("too_large", f"a context of {asked} tokens is too large")
        return super().plan(limits, software=software, ctx_size=ctx_size)


class Served:
    """The server's application, and what stands before it."""

    def __init__(self, path: Path, *, ctx: int, piece: int, key: str | None = None) -> None:
        self.url = ""
        self._path, self._ctx, self._piece = path, ctx, piece
        self._settings = Settings(api_key=key)
        self._models: list[Limited] = []
        self.requests: list[str] = []
        """Their paths, in order."""
        self.schedules: list[Width] = []
        """Those that were answered with."""
        self.refused = 0
        """How many answers had status 409: a plan was not known."""
        self.broken: list[str] = []
        """What goes wrong with the next answers with weights: ``cut`` or ``damaged``."""
        self.restart()

    @property
    def model(self) -> Limited:
        return self._models[-1]

    def restart(self, path: Path | None = None) -> None:
        """All that was made for a page is forgotten; perhaps another model is there."""
        self._path = path or self._path
        made = Limited.open(self._path, offline=True, ctx_size=self._ctx, chat_template=TEMPLATE)
        assert isinstance(made, Limited)
        made.plans.store = PieceStore(piece=self._piece)
        self._models.append(made)
        host = EngineHost(str(self._path), {}, queue_size=1)
        routes = [*page_routes(made), *chat_routes(host, made)]
        self._app = create_app(made, host, self._settings, routes)

    def close(self) -> None:
        for model in self._models:
            model.close()

    def asked(self, kind: str) -> int:
        """How many requests had a path that ends so."""
        return sum(path.endswith(kind) for path in self.requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            self.requests.append(path)
            if path.endswith("/schedules"):
                plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
                scope, send = {**scope, "headers": plain}, self._recording(send)
            elif path.endswith("/weights") and self.broken:
                send = _broken(self.broken.pop(0), send)
            send = self._counting(send)
        await self._app(scope, receive, send)

    def _counting(self, send: Send) -> Send:
        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.refused += message["status"] == 409
            await send(message)

        return count

    def _recording(self, send: Send) -> Send:
        body = bytearray()

        async def record(message: Message) -> None:
            if message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    told = json.loads(body).get("schedules", [])
                    self.schedules += [Width(each["part"], each["rows"], each["cells"]) for each in told]
            await send(message)

        return record


def _broken(fault: str, send: Send) -> Send:
    """Of an answer half of the first bytes, after which the connection ends; or all, of which one is another."""
    begun = False

    async def change(message: Message) -> None:
        nonlocal begun
        data = message.get("body", b"")
        if not data or (begun and fault == "damaged"):
            if not begun or fault == "damaged":
                await send(message)
        elif not begun:
            begun = True
            if fault == "cut":
                await send({**message, "body": data[: len(data) // 2], "more_body": True})
            else:
                await send({**message, "body": bytes(data[:-1]) + bytes([data[-1] ^ 1])})

    return change


@contextlib.contextmanager
def served(path: Path, **options: Any) -> Iterator[Served]:
    """The options are those of ``Served``."""
    made = Served(path, **options)
    try:
        with serving(made) as server:
            made.url = server.url
            yield made
    finally:
        made.close()
