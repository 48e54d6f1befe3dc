"""The server's routes that the browser's engine asks, for tests of it: one model, all in memory, faults on demand.

Messages are token ids: the prompt is all of their contents, or their ``token_ids``, one after the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wgllm import models
from wgllm.backends.fills import packed_file
from wgllm.cache import cell_counts
from wgllm.formats.gguf import open_gguf
from wgllm.lowering import PlanOptions, lower, prepared
from wgllm.plan import Limits, Plan, Width
from wgllm.tokenizer import Tokenizer, tokenizer_from_model

HERE = Path(__file__).parent
WEB = HERE.parents[1] / "wgllm" / "web"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types wgllm",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_KINDS = {".html": "text/html", ".js": "text/javascript"}
_LIMITS = {
    "maxBufferSize": "buffer",
    "maxStorageBufferBindingSize": "binding",
    "maxStorageBuffersPerShaderStage": "bindings",
    "maxComputeWorkgroupStorageSize": "workgroup_memory",
    "maxComputeInvocationsPerWorkgroup": "invocations",
    "maxComputeWorkgroupsPerDimension": "workgroups",
}


@dataclass(frozen=True)
class Planned:
    id: str
    plan: Plan
    weights: bytes
    windows: dict[str, int | None]
    ctx: int


class ModelServer:
    """Serves the page's modules, ``local_page.html`` and the routes for the model at ``path``, to this machine."""

    def __init__(
        self,
        path: Path,
        *,
        ctx: int,
        rows: int,
        piece: int = 8 << 20,
        key: str | None = None,
    ) -> None:
        self._path = path
        self._ctx = ctx
        self._rows = rows
        self._piece = piece
        self._key = key
        self._plans: dict[str, Planned] = {}
        self._lock = threading.Lock()
        self.requests: list[str] = []
        """Method, path and range of each, in order."""
        self.schedules: list[Width] = []
        """Those that were asked for."""
        self.most_ctx = 1 << 20
        """Larger contexts are too large."""
        self.spoiled = False
        """Whether the weights of further plans are no numbers."""
        self.broken: list[str] = []
        """What goes wrong with the next answers with weights: ``cut`` or ``damaged``."""
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def forget_plans(self) -> None:
        """As a restart does."""
        self._plans.clear()

    def asked(self, kind: str) -> int:
        """How many requests had a path that ends so."""
        return sum(request.split(" ")[1].endswith(kind) for request in self.requests)

    # Routes: what they answer, as JSON unless it is bytes

    def get(self, path: str) -> Any:
        if path == "/favicon.ico":
            return b""
        if path == "/api/model":
            with open_gguf(self._path) as file:
                ends = tokenizer_from_model(file).eog_ids
            return {"id": self._path.stem, "end_ids": sorted(ends), "ctx_size": self._ctx}
        if path == "/api/vocabulary":
            with open_gguf(self._path) as file:
                return vocabulary_bytes(tokenizer_from_model(file))
        if match := re.fullmatch("/api/plans/([^/]+)/pieces", path):
            return b"".join(json.dumps(line).encode() + b"\n" for line in self._pieces(match[1]))
        raise KeyError(path)

    def post(self, path: str, body: Any) -> Any:
        if path == "/api/plans":
            planned = self._planned(body)
            plan = {k: v for k, v in planned.plan.to_json().items() if k not in ("schedules", "kernels")}
            return {
                "id": planned.id,
                "plan": plan,
                "ctx_size": planned.ctx,
                "windows": planned.windows,
                "weights_bytes": len(planned.weights),
                "gpu_bytes": planned.plan.size,
            }
        if path == "/api/chat_tokens":
            ids: list[int] = []
            for message in body["messages"]:
                ids += message.get("token_ids") or map(int, message["content"].split())
            return {"tokens": ids}
        if match := re.fullmatch("/api/plans/([^/]+)/schedules", path):
            plan = self.plan(match[1]).plan
            with self._lock:
                made = [plan.schedule(w["part"], w["rows"], w["cells"]) for w in body["widths"]]
                self.schedules += [width for width, _ in made]
                data = plan.to_json()
            wanted = {tuple(width) for width, _ in made}
            listed = [s for s in data["schedules"] if (s["part"], s["rows"], s["cells"]) in wanted]
            return {"schedules": listed, "kernels": data["kernels"]}
        raise KeyError(path)

    def weights(self, path: str) -> bytes:
        match = re.fullmatch("/api/plans/([^/]+)/weights", path)
        assert match is not None
        return self.plan(match[1]).weights

    def plan(self, key: str) -> Planned:
        """Raises Refused."""
        try:
            return self._plans[key]
        except KeyError:
            raise Refused(404, "unknown_plan") from None

    def _planned(self, body: Any) -> Planned:
        ctx = body["ctx_size"] or self._ctx
        if ctx > self.most_ctx:
            raise Refused(422, "too_large")
        asked = json.dumps([self._path.name, body, ctx], sort_keys=True)
        key = hashlib.sha256(asked.encode()).hexdigest()[:16]
        with self._lock:
            if key not in self._plans:
                made = planned(self._path, key, ctx, self._rows, body)
                if self.spoiled:
                    made = replace(made, weights=b"\xff" * len(made.weights))
                self._plans[key] = made
        return self._plans[key]

    def _pieces(self, key: str) -> Iterator[dict[str, Any]]:
        weights = self.plan(key).weights
        for at in range(0, len(weights), self._piece):
            data = weights[at : at + self._piece]
            yield {"at": at, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        yield {"done": True, "size": len(weights)}


class Refused(Exception):
    """A status and a code."""


def planned(path: Path, key: str, ctx: int, rows: int, body: Any) -> Planned:
    with open_gguf(path) as file:
        built = models.build(file, ctx)
        sizes = cell_counts(built.graph.windows, ctx, rows, slots=1)
        limits = Limits(**{ours: body["limits"][name] for name, ours in _LIMITS.items()})
        options = PlanOptions(sizes, ctx, rows, limits=limits, software=body["software"], host="tint")
        plan = lower(prepared(built.graph), options)
        weights = np.concatenate(list(packed_file(plan, built.weights))).tobytes()
        windows = {
            state.name: built.graph.windows[str(dim)]
            for state in built.graph.of_kind("state")
            for dim in state.shape
            if dim in built.graph.windows
        }
        return Planned(key, plan, weights, windows, ctx)


def vocabulary_bytes(tokenizer: Tokenizer) -> bytes:
    """As ``vocabulary.js`` reads it."""
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    offsets = np.cumsum([0, *map(len, tokens)]).astype("<u4")
    kinds = bytes(map(tokenizer.is_control, range(len(tokens))))
    head = struct.pack("<4I", 0x4C4F5657, 1, len(tokens), int(tokenizer.strips_space))
    return b"".join([head, offsets.tobytes(), kinds, bytes(-len(kinds) % 4), *tokens])


def _handler(server: ModelServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(f"GET {self.path} {self.headers.get('Range', '')}")
            if self.path == "/" or self.path.startswith(("/static/", "/tests/")):
                self._file()
            elif self.path.endswith("/weights"):
                self._part()
            else:
                self._answer(lambda: server.get(self.path))

        def do_POST(self) -> None:
            server.requests.append(f"POST {self.path} ")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(lambda: server.post(self.path, body))

        def _file(self) -> None:
            folder = WEB if self.path.startswith("/static/") else HERE
            name = self.path.removeprefix("/static/").removeprefix("/tests/").lstrip("/") or "local_page.html"
            file = folder / name
            if not re.fullmatch(r"[\w.]+", name) or not file.exists():
                self._send(404, b"")
                return
            self._send(200, file.read_bytes(), kind=_KINDS[file.suffix])

        def _part(self) -> None:
            try:
                data = server.weights(self.path)
            except Refused as error:
                self._refuse(*error.args)
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match is not None
            first, last = int(match[1]), int(match[2])
            part = data[first : last + 1]
            fault = server.broken.pop(0) if server.broken else ""
            faulty = {"cut": part[: len(part) // 2], "damaged": part[:-1] + bytes([part[-1] ^ 1])}
            sent = faulty.get(fault, part)
            content = f"bytes {first}-{last}/{len(data)}"
            self._send(206, sent, {"Content-Range": content, "Content-Length": str(len(part))})

        def _answer(self, make: Any) -> None:
            key = self.headers.get("Authorization")
            if server._key is not None and key != f"Bearer {server._key}":
                self._refuse(401, "")
                return
            try:
                made = make()
            except Refused as error:
                self._refuse(*error.args)
                return
            if isinstance(made, bytes):
                self._send(200, made)
            else:
                self._send(200, json.dumps(made).encode(), kind="application/json")

        def _refuse(self, status: int, code: str) -> None:
            error = {"error": {"message": f"refused: {code}", "code": code}}
            self._send(status, json.dumps(error).encode(), kind="application/json")

        def _send(
            self,
            status: int,
            data: bytes,
            headers: dict[str, str] | None = None,
            kind: str = "application/octet-stream",
        ) -> None:
            self.send_response(status)
            own = {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}
            for name, value in {**HEADERS, **own}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the page may have gone
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
