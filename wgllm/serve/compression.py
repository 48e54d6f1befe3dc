"""gzip for what becomes smaller by it: JSON, scripts, the vocabulary. Never for events, ranges or weights."""

from __future__ import annotations

import zlib

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TYPES = frozenset(
    (
        "application/json",
        "application/x-ndjson",
        "application/manifest+json",
        "image/svg+xml",
        "text/css",
        "text/html",
        "text/javascript",
        "text/plain",
    )
)
_PATHS = frozenset({"/api/vocabulary"})
_SMALLEST = 1024
_IN_A_THREAD = 64 << 10
_LEVEL = 5


class Compression:
    """Compresses answers for clients that take gzip; what is streamed goes out with every piece."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "HEAD":
            send = _Answer(send, scope["path"], accepts_gzip(Headers(scope=scope))).send
        await self._app(scope, receive, send)


class _Answer:
    """One answer on its way."""

    def __init__(self, send: Send, path: str, accepted: bool) -> None:
        self._send = send
        self._path = path
        self._accepted = accepted
        self._start: Message | None = None
        self._packer: zlib._Compress | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._may_be_packed(message):
                self._start = message  # what the headers say is known with the first piece
                return
        elif message["type"] == "http.response.body":
            last = not message.get("more_body", False)
            body = message.get("body", b"")
            if self._start is not None:
                start, self._start = self._start, None
                headers = MutableHeaders(scope=start)
                headers.add_vary_header("Accept-Encoding")
                if self._accepted and not (last and len(body) < _SMALLEST):
                    self._packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
                    headers["Content-Encoding"] = "gzip"
                    if last:
                        body = await self._packed(body, last)
                        headers["Content-Length"] = str(len(body))
                        await self._send(start)
                        await self._send({**message, "body": body})
                        return
                    if "content-length" in headers:
                        del headers["content-length"]
                await self._send(start)
            if self._packer is not None:
                message = {**message, "body": await self._packed(body, last)}
        await self._send(message)

    def _may_be_packed(self, start: Message) -> bool:
        headers = Headers(scope=start)
        if start["status"] in (204, 206, 304, 416) or "content-encoding" in headers:
            return False
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind in _TYPES or self._path in _PATHS

    async def _packed(self, body: bytes, last: bool) -> bytes:
        if len(body) >= _IN_A_THREAD:
            return await to_thread.run_sync(self._pack, body, last)
        return self._pack(body, last)

    def _pack(self, body: bytes, last: bool) -> bytes:
        assert self._packer is not None
        packed = self._packer.compress(body)
        return packed + self._packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def accepts_gzip(headers: Headers) -> bool:
    """Whether ``Accept-Encoding`` takes gzip: named, or by ``*``, and not with a quality of 0."""
    qualities: dict[str, bool] = {}
    for part in ",".join(headers.getlist("accept-encoding")).split(","):
        name, _, parameter = part.partition(";")
        key, _, value = parameter.partition("=")
        zero = key.strip().lower() == "q" and value.strip().rstrip("0") in ("", ".", "0.")
        qualities[name.strip().lower()] = not zero
    return qualities.get("gzip", qualities.get("*", False))
