"""A Hugging Face of a few lines on the loopback, with faults to order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves ``repos`` (name -> file -> bytes). ``faults`` per repository:

    ``cut:N`` closes the connection at byte N of a file, ``stall:N`` says nothing after it, ``held`` waits after
    some bytes for ``go_on``,
    ``no-range`` ignores Range, ``wrong`` sends other bytes, ``short`` fewer, ``more`` more than it promised;
    ``gated``; ``file:CODE`` and ``api:CODE`` answer with that status.
    """

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repos = repos
        self.faults: dict[str, str] = {}
        self.ranges: list[str] = []
        self.bytes_sent = 0
        self.asked = 0
        """Requests for files, or for where they are."""
        self.closing = threading.Event()
        self.go_on = threading.Event()

    def __enter__(self) -> FakeHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            pieces = self.path.partition("?")[0].strip("/").split("/")
            if pieces[:2] == ["api", "models"]:
                self._info("/".join(pieces[2:4]))
            elif pieces[2:3] == ["resolve"]:
                self._file("/".join(pieces[:2]), "/".join(pieces[4:]))
            else:
                self._send(404, b"{}", {})

    def _info(self, repo: str) -> None:
        kind, _, argument = self.hub.faults.get(repo, "").partition(":")
        if kind == "gated":
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if kind == "api":
            return self._send(int(argument), b"{}", {"Retry-After": "0"})
        if repo not in self.hub.repos:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                "lfs": None
                if name.endswith((".json", ".jinja"))
                else {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1},
            }
            for name, data in self.hub.repos[repo].items()
        ]
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}}
        return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, name: str) -> None:
        kind, _, argument = self.hub.faults.get(repo, "").partition(":")
        if kind == "file":
            return self._send(int(argument), b"{}", {"Retry-After": "0"})
        self.hub.asked += 1
        data = self.hub.repos.get(repo, {}).get(name)
        if data is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        total = len(data)
        if kind == "wrong":
            data = data[::-1]
        elif kind == "short":
            data = data[:-100]
        elif kind == "more":
            data = data * 2
        start, code = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and kind != "no-range":
            start, code = min(int(wanted[1]), total), 206
            self.hub.ranges.append(wanted[0])
        self.send_response(code)
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        end = int(argument) if kind in ("cut", "stall") else len(data)
        body = data[start : max(start, end)]
        for i in range(0, len(body), 1 << 16):
            # Before they go: who has got the last ones may look.
            self.hub.bytes_sent += len(body[i : i + (1 << 16)])
            self.wfile.write(body[i : i + (1 << 16)])
            if kind == "held":
                self.hub.go_on.wait()
        self.wfile.flush()
        if kind == "stall" and end < len(data):
            self.hub.closing.wait()
        if len(body) < len(data) - start:
            self.close_connection = True
        return None

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
