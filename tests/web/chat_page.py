"""The chat page in a browser, from a server that says what tests want."""

from __future__ import annotations

import contextlib
import functools
import http.server
import inspect
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.web.chromium import PATIENCE_MS, Chromium
from wgllm.serve.security import security_headers
from wgllm.serve.settings import Settings
from wgllm.serve.static import FOLDER, read_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
HEADERS = {**security_headers(Settings()), "Cache-Control": "no-cache"}
MODEL = {
    "id": "smollm2", "name": "SmolLM2 135M Instruct", "architecture": "llama", "quantization": "Q4_1",
    "parameters": 134_515_008, "nbytes": 96_700_000, "license": "Apache-2.0", "n_ctx_train": 8192, "vocab_size": 49152,
    "end_ids": [2], "has_template": True, "has_system": True, "ctx_size": 8192, "version": "0.1.0",
    "sampling": {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
}  # fmt: skip

# Counts what should never happen: scripts that run, and what the page's policy had to stop.
CANARY = """
window.canary = 0;
window.violations = [];
window.failures = [];
addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective + " " + e.blockedURI));
addEventListener("error", (e) => failures.push(String(e.message)));
addEventListener("unhandledrejection", (e) => failures.push(String(e.reason?.stack ?? e.reason)));
for (const name of ["alert", "confirm", "prompt", "print"]) window[name] = () => { window.canary++; };
"""

# What goes away by itself after a while stays to be seen, however slow the machine is.
PATIENT = """
const soon = window.setTimeout;
window.setTimeout = (act, ms, ...rest) => soon(act, ms >= 1000 ? 100 * ms : ms, ...rest);
"""


class PageServer:
    """The page's files, with ``fake_model.js`` for the graphics card, and answers that tests may change."""

    def __init__(self) -> None:
        self.model: dict[str, Any] = dict(MODEL)
        self.key: str | None = None
        self.engine: dict[str, Any] = {"state": "idle", "where": "CPU (NumPy)"}
        """What /health says of it."""
        self.gone = False
        """Whether all of /api and /v1 is refused as by a server that has ended."""
        self.chunks: list[dict[str, Any]] = []
        """What /v1/chat/completions streams."""
        self.error: tuple[int, dict[str, Any]] | None = None
        """What it answers instead."""
        self.asked: list[dict[str, Any]] = []
        self.other: list[str] = []
        """Paths that the page should not have asked for."""
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def say(self, *texts: str) -> None:
        """The stream of a reply, as the server makes it."""
        progress = {"object": "wgllm.progress", "stage": "prefill", "done": 3, "total": 3, "label": ""}
        texted = [
            {"choices": [{"index": 0, "delta": {"content": t}, "finish_reason": None}], "token_ids": [i]}
            for i, t in enumerate(texts)
        ]
        last = {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": len(texts)},
            "timings": {"prompt_ms": 12.0, "predicted_n": len(texts), "predicted_ms": 100.0, "cache_n": 0},
            "context_used": 3 + len(texts), "context_size": 8192,
        }  # fmt: skip
        self.chunks = [progress, *texted, last]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer on a kept connection waits for 40 ms

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path == "/api/model":
                    self.api(200, server.model)
                elif path == "/health":
                    self.answer(200, {"status": "ok", "engine": server.engine})
                elif (file := self.file(path)) is not None:
                    data, kind = file
                    self.send(200, kind, data)
                else:
                    server.other.append(path)
                    self.send(404, "text/plain", b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/v1/chat/completions":
                    server.other.append(self.path)
                    self.send(404, "text/plain", b"")
                elif server.error is not None or self.refused():
                    self.api(*(server.error or (200, {})))
                else:
                    server.asked.append(json.loads(body))
                    lines = [json.dumps(c) for c in server.chunks] + ["[DONE]"]
                    self.send(
                        200, "text/event-stream", "".join(f"data: {line}\n\n" for line in lines).encode()
                    )

            def file(self, path: str) -> tuple[bytes, str] | None:
                if path == "/static/local_model.js":
                    return (HERE / "fake_model.js").read_bytes(), "text/javascript"
                name = "index.html" if path == "/" else path.removeprefix("/static/")
                found = read_file(FOLDER, name) if path == "/" or path.startswith("/static/") else None
                return None if found is None else (found.data, found.media_type)

            def refused(self) -> bool:
                return server.gone or (
                    server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}"
                )

            def api(self, status: int, data: dict[str, Any]) -> None:
                if server.gone:
                    self.close_connection = True
                    self.connection.close()
                elif self.refused():
                    self.answer(
                        401,
                        {
                            "error": {
                                "message": "this server wants its API key",
                                "type": "authentication_error",
                            }
                        },
                    )
                else:
                    self.answer(status, data)

            def answer(self, status: int, data: dict[str, Any]) -> None:
                self.send(status, "application/json", json.dumps(data).encode())

            def send(self, status: int, kind: str, data: bytes) -> None:
                with contextlib.suppress(OSError):  # the page has gone on
                    self.send_response(status)
                    for name, value in {
                        **HEADERS,
                        "Content-Type": kind,
                        "Content-Length": str(len(data)),
                    }.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def on_page(
    *,
    width: int = 1100,
    height: int = 800,
    scheme: str = "light",
    touch: bool = False,
    fake: dict[str, Any] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes of ``test(chat, ...)`` a test that gets an open page of its own; ``fake``: the script of the fake model."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(chromium: Chromium, **rest: Any) -> None:
            def within(browser: Browser) -> None:
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=scheme,
                    reduced_motion="reduce",
                    has_touch=touch,
                )
                server = PageServer()
                try:
                    chat = ChatPage(context.new_page(), server, fake or {})
                    test(chat, **rest)
                    chat.check()
                finally:
                    context.close()
                    server.close()

            chromium.call(within)

        others = list(inspect.signature(test).parameters.values())[1:]
        own = inspect.Parameter("chromium", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([own, *others])  # type: ignore[attr-defined]
        return run

    return decorate


class ChatPage:
    """A tab with the page, and what a user does in it."""

    def __init__(self, page: Page, server: PageServer, fake: dict[str, Any]) -> None:
        self.page = page
        self.server = server
        self.requests: list[str] = []
        page.context.set_default_timeout(PATIENCE_MS)
        page.add_init_script(CANARY)
        page.add_init_script(PATIENT)
        page.add_init_script(path=HERE / "page_checks.js")
        page.add_init_script("window.fake = " + json.dumps(fake))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, *, phase: str | None = "ready", fragment: str = "") -> None:
        """Until it is in that phase; None: until it has its parts, and perhaps not yet an answer of the server's."""
        self.page.goto(f"{self.server.url}?test{fragment}")
        self.page.wait_for_function("() => window.wgllmPage")
        if phase is not None:
            self.page.wait_for_selector(f'#where[data-phase="{phase}"]')

    def set(self, **fake: Any) -> None:
        """Changes the script of the fake model."""
        self.page.evaluate("(more) => { window.fake = { ...window.fake, ...more }; }", fake)

    def say(self, text: str, *, wait: bool = True) -> None:
        """Types a message and sends it by keys."""
        self.page.focus("#input")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Enter")
        if wait:
            self.settle()

    def settle(self) -> None:
        """Until no reply is written, all is kept and listed, and drawn."""
        self.page.wait_for_function("() => !wgllmPage.app.chats.busy")
        # The store does one after the other: the first of these answers after the chat is kept, the second after the
        # list of chats is read that this brings.
        self.page.evaluate("async () => { await wgllmPage.store.list(); await wgllmPage.store.list(); }")
        self.page.evaluate("() => checks.drawn()")

    def texts(self) -> list[str]:
        """What the shown messages say."""
        return self.page.eval_on_selector_all(
            ".message > :is(.said, .body)", "(all) => all.map((each) => each.innerText.trim())"
        )

    def eventually(self, script: str, argument: object = None) -> None:
        self.page.wait_for_function(script, arg=argument)

    def check(self) -> None:
        """Nothing ran that should not, nothing was stopped by the policy, no other server was asked."""
        state = self.page.evaluate("() => [canary, violations, failures]")
        assert state == [0, [], []]
        assert self.server.other == []
        assert [url for url in self.requests if not url.startswith((self.server.url, "blob:"))] == []
