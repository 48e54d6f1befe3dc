"""The page on which ``runtime.js`` is tested, in a browser with WebGPU."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from tests.serve.in_thread import serving
from tests.web.chromium import Chromium, NoBrowser, Tab
from wgllm.plan import Plan
from wgllm.serve.static import static_routes
from wgllm.wgsl import Source

PAGE = Path(__file__).with_name("page.html")

Numbers = NDArray[Any]
Inputs = Mapping[str, Sequence[float]]


class Blobs:
    """What the page may fetch."""

    def __init__(self) -> None:
        self._held: list[tuple[str, bytes]] = []

    def add(self, data: bytes | Numbers | Plan | Mapping[str, Any]) -> str:
        """The path under which the page gets a plan as JSON, or bytes."""
        if isinstance(data, Plan):
            data = data.to_json()
        if isinstance(data, Mapping):
            self._held.append(("application/json", json.dumps(data).encode()))
        else:
            self._held.append(("application/octet-stream", bytes(data)))
        return f"/blobs/{len(self._held) - 1}"

    async def answer(self, request: Request) -> Response:
        kind, data = self._held[request.path_params["number"]]
        return Response(data, media_type=kind)


async def _page(request: Request) -> Response:
    return FileResponse(PAGE)


class BrowserPage:
    """The open page. Its functions are those of ``window.wgllm`` in page.html."""

    def __init__(self, tab: Tab, blobs: Blobs) -> None:
        self.evaluate = tab.evaluate
        self.register = blobs.add

    def adapter_info(self) -> dict[str, Any]:
        return self.evaluate("() => wgllm.adapterInfo()")

    def run(
        self, plan: Plan | Mapping[str, Any], weights: bytes | Numbers | None, steps: Sequence[Inputs]
    ) -> list[dict[str, Numbers]]:
        """The outputs of each step."""
        outputs = self.evaluate("(a) => wgllm.run(...a)", [*self._urls(plan, weights), steps])
        return [{name: unpacked(output) for name, output in step.items()} for step in outputs]

    def greedy(
        self,
        plan: Plan | Mapping[str, Any],
        weights: bytes | Numbers | None,
        tokens: Sequence[int],
        count: int,
    ) -> list[int]:
        """The ``count`` likeliest tokens after ``tokens``."""
        return self.evaluate("(a) => wgllm.greedy(...a)", [*self._urls(plan, weights), tokens, count])

    def failure(
        self, plan: Plan | Mapping[str, Any], weights: bytes | Numbers | None, steps: Sequence[Inputs]
    ) -> dict[str, str] | None:
        """The name, message and listing of the error that ``run`` ends with."""
        script = "(a) => wgllm.failure(() => wgllm.run(...a))"
        return self.evaluate(script, [*self._urls(plan, weights), steps])

    def mistakes(self, sources: Iterable[Source]) -> list[str]:
        """What the browser's compiler refuses in shaders, each with its place and the lines around it."""
        listed = list(sources)
        errors = self.evaluate("(texts) => wgllm.compileAll(texts)", [s.text for s in listed])
        return [
            f"{s.name}: {s.explain(e['line'])}: {e['message']}\n{s.listing(e['line'])}"
            for s, each in zip(listed, errors, strict=True)
            for e in each
        ]

    def _urls(self, plan: Plan | Mapping[str, Any], weights: bytes | Numbers | None) -> list[str | None]:
        return [self.register(plan), None if weights is None else self.register(weights)]


def unpacked(output: Mapping[str, str]) -> Numbers:
    """Numbers that the page has ``packed``."""
    return np.frombuffer(base64.b64decode(output["base64"]), output["dtype"])


@contextlib.contextmanager
def opened(chromium: Chromium) -> Iterator[BrowserPage]:
    """Raises NoBrowser where it has no WebGPU."""
    blobs = Blobs()
    own = [Route("/", _page), Route("/blobs/{number:int}", blobs.answer)]
    with serving(Starlette(routes=[*own, *static_routes()])) as server:
        tab = chromium.tab(server.url, "wgllm")
        if not tab.evaluate("() => wgllm.hasAdapter"):
            raise NoBrowser("Chromium has no WebGPU adapter")
        yield BrowserPage(tab, blobs)
        tab.close()
