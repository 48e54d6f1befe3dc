"""An application on a port of this machine, served as ``wgllm serve`` does, in a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from wgllm.serve.network import listeners
from wgllm.serve.server import Server


class InThread:
    """A server that runs."""

    def __init__(self, app: Any, host: str, context: ssl.SSLContext | None, daemon: bool) -> None:
        sockets = listeners(host, 0)
        for each in sockets:
            each.listen(1024)
        self.port: int = sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(app, sockets, context)
        self.thread = threading.Thread(target=self.server.run, daemon=daemon)
        self.thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def exchange(self, data: bytes) -> bytes:
        """All that a connection answers to some bytes until it is closed."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=10, **options)

    def health_seconds(self) -> float:
        """How long /health takes on a connection of its own."""
        began = time.monotonic()
        found = self.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 200 ") and b'"status":"ok"' in found
        return time.monotonic() - began


@contextlib.contextmanager
def serving(
    app: Any, host: str = "127.0.0.1", *, context: ssl.SSLContext | None = None, daemon: bool = True
) -> Iterator[InThread]:
    """Connections wait until the application has started."""
    made = InThread(app, host, context, daemon)
    try:
        yield made
    finally:
        made.server.stop()
        made.thread.join(10)
        assert not made.thread.is_alive()


def read_all(connection: socket.socket) -> bytes:
    found = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            found += data
    return bytes(found)
