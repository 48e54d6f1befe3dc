"""An application on a port of this machine, served as ``wgllm serve`` does, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import httpx

from wgllm.serve.network import listeners
from wgllm.serve.server import Connection, Server

# How long anything may take on a slow machine that does other things too.
PATIENCE = 60.0
# For limits that must not be what ends a test's wait, and for what would take for ever.
FOR_EVER = 10 * PATIENCE
T = TypeVar("T")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


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
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def exchange(self, data: bytes) -> bytes:
        """All that a connection answers to some bytes until it is closed."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE, **options)

    def check_health(self) -> None:
        """/health is answered on a connection of its own, before any wait of ``FOR_EVER`` ends."""
        found = self.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 200 ") and b'"status":"ok"' in found

    @property
    def connections(self) -> list[Connection]:
        return list(self.server.server_state.connections)  # type: ignore[arg-type]

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """In the server's own loop."""
        loop = self.server.servers[0].get_loop()
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)

    def pass_time(self, seconds: float) -> None:
        """Lets the server's loop take it for so much later: its timers of that time have run afterwards."""

        async def jump() -> None:
            loop = asyncio.get_running_loop()
            now = loop.time
            loop.time = lambda: now() + seconds  # type: ignore[method-assign]
            for _ in range(
                4
            ):  # timers that are due run in the next turn, what they have begun in those after it
                await asyncio.sleep(0)

        self.do(jump())

    def end(self) -> None:
        self.server.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(
    app: Any, host: str = "127.0.0.1", *, context: ssl.SSLContext | None = None, daemon: bool = True
) -> Iterator[InThread]:
    """Connections wait until the application has started."""
    made = InThread(app, host, context, daemon)
    try:
        yield made
    finally:
        made.end()


def read_all(connection: socket.socket) -> bytes:
    found = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            found += data
    return bytes(found)
