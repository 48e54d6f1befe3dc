"""A browser with WebGPU, and the page in it on which ``runtime.js`` is tested."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wgllm.plan import Plan
from wgllm.wgsl import Source

HERE = Path(__file__).parent
MODULES = HERE.parents[1] / "wgllm" / "web"

# WebGPU on a software adapter, which browsers do not offer by themselves.
FLAGS = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")

Numbers = NDArray[Any]
Inputs = Mapping[str, Sequence[float]]


class NoBrowser(Exception):
    """Why there is no browser to test in."""


def find_chromium() -> str:
    """The path of a Chromium: WGLLM_CHROMIUM, or one of the usual names."""
    if chosen := os.environ.get("WGLLM_CHROMIUM"):
        return chosen
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise NoBrowser("no Chromium")


class Server:
    """Serves the page, the modules of ``wgllm/web`` and what tests register, to this machine alone."""

    def __init__(self) -> None:
        self._files = {
            "/": ("text/html", (HERE / "page.html").read_bytes()),
        }
        for module in MODULES.glob("*.js"):
            self._files[f"/{module.name}"] = ("text/javascript", module.read_bytes())
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/"

    def register(self, data: bytes | Numbers | Plan) -> str:
        """The path under which the page gets a plan as JSON, or bytes."""
        path = f"/blobs/{len(self._files)}"
        if isinstance(data, Plan):
            self._files[path] = ("application/json", json.dumps(data.to_json()).encode())
        else:
            self._files[path] = ("application/octet-stream", bytes(data))
        return path

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        files = self._files

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, data = files.get(self.path, ("", None))
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the page reads no further than it needs
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


class Tab:
    """A page of the same browser."""

    def __init__(self, thread: ThreadPoolExecutor, page: Any, ready: str) -> None:
        self._thread = thread
        self._page = page
        self._ready = ready
        self.problems: list[str] = []
        """What was not caught, and what the console has against the page."""
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)

    def evaluate(self, script: str, argument: object = None) -> Any:
        return self._thread.submit(self._page.evaluate, script, argument).result()

    def go(self, url: str) -> None:
        """Also to where it is: a reload."""
        self._thread.submit(self._go, url).result()

    def close(self) -> None:
        self._thread.submit(self._page.context.close).result()

    def _go(self, url: str) -> None:
        self._page.goto(url)
        self._page.wait_for_function(f"() => window.{self._ready}")


class BrowserPage:
    """The open page. Its functions are those of ``window.wgllm`` in page.html."""

    def __init__(self, call: Callable[..., Any], server: Server, tab: Callable[[str, str], Tab]) -> None:
        self._call = call
        self.register = server.register
        self.open = tab
        """A fresh tab, which shares no storage with others, at an address, when ``window`` has that name."""

    def evaluate(self, script: str, argument: object = None) -> Any:
        """What a JavaScript function gives for ``argument``, both as JSON."""
        return self._call(script, argument)

    def adapter_info(self) -> dict[str, Any]:
        return self.evaluate("() => wgllm.adapterInfo()")

    def run(
        self, plan: Plan, weights: bytes | Numbers | None, steps: Sequence[Inputs]
    ) -> list[dict[str, Numbers]]:
        """The outputs of each step."""
        outputs = self.evaluate("(a) => wgllm.run(...a)", [*self._urls(plan, weights), steps])
        return [{name: unpacked(output) for name, output in step.items()} for step in outputs]

    def greedy(
        self, plan: Plan, weights: bytes | Numbers | None, tokens: Sequence[int], count: int
    ) -> list[int]:
        """The ``count`` likeliest tokens after ``tokens``."""
        return self.evaluate("(a) => wgllm.greedy(...a)", [*self._urls(plan, weights), tokens, count])

    def failure(
        self, plan: Plan, weights: bytes | Numbers | None, steps: Sequence[Inputs]
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

    def _urls(self, plan: Plan, weights: bytes | Numbers | None) -> list[str | None]:
        return [self.register(plan), None if weights is None else self.register(weights)]


def unpacked(output: Mapping[str, str]) -> Numbers:
    """Numbers that the page has ``packed``."""
    return np.frombuffer(base64.b64decode(output["base64"]), output["dtype"])


@contextlib.contextmanager
def opened() -> Iterator[BrowserPage]:
    """The page in a headless Chromium. Raises NoBrowser."""
    # Playwright leaves an event loop running in its thread, where other tests could then start none.
    with ThreadPoolExecutor(1, "browser") as thread, contextlib.ExitStack() as stack:
        server = Server()
        stack.callback(server.close)
        page, close = thread.submit(_launch, server.url).result()
        stack.callback(lambda: thread.submit(close).result())

        def call(script: str, argument: object) -> Any:
            return thread.submit(page.evaluate, script, argument).result()

        def tab(url: str, ready: str) -> Tab:
            fresh = thread.submit(lambda: page.context.browser.new_context().new_page()).result()
            made = Tab(thread, fresh, ready)
            made.go(url)
            return made

        yield BrowserPage(call, server, tab)


def _launch(url: str) -> tuple[Any, Callable[[], None]]:
    """The page, and what closes all that was opened for it."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise NoBrowser("playwright is not installed") from error
    executable = find_chromium()
    # Chromium has no sandbox for the administrator, in whose name containers often run.
    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else list(FLAGS)
    with contextlib.ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=flags)
        except Error as error:
            raise NoBrowser(f"{executable} can't be used: {str(error).splitlines()[0]}") from error
        stack.callback(browser.close)
        page = browser.new_page()
        page.goto(url)
        page.evaluate(
            "() => import('/runtime.js')"
        )  # tells mistakes in it, where the page would only stay empty
        page.wait_for_function("() => window.wgllm")
        if not page.evaluate("() => wgllm.hasAdapter"):
            raise NoBrowser(f"{executable} has no WebGPU adapter")
        return page, stack.pop_all().close
