"""uvicorn in this process, hardened: slow and silent clients take no place from others, and the end is quick."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from socket import socket
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from wgllm import debug
from wgllm.serve.limits import ADMITTED, HEADER_BYTES

HANDSHAKE_SECONDS = 3.0
_GRACE_SECONDS = 1
_THREAD_SECONDS = 0.5
_KEEP_ALIVE_SECONDS = 30
_MOST_CONNECTIONS = 512
_SPARE_FILES = 96


class Connection(H11Protocol):
    """A client's connection. One that is slow to ask, or no longer reads, is ended; where there are too many, the
    one that has been idle for longest makes room, so that new ones are always heard. With TLS it is one from before
    the handshake on, which asyncio's own servers hide from those that would count it."""

    head_seconds = 15.0
    """For a request's headers, from the connection's start or the first of their bytes."""
    stalled_seconds = 120.0
    """How long a client may read nothing of what waits for it."""
    most = _MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # type: ignore[override,unused-ignore]
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._early: bytearray | None = None
        """What came before the handshake's end was known here; None when it is."""
        self._since = self.loop.time()
        self.transport = cast(asyncio.Transport, transport)
        self.connections.add(self)
        self._make_room()
        if self.config.ssl is None:
            self._begin(self.transport)
        else:
            self._early = bytearray()
            self._securing = self.loop.create_task(self._secure(self.transport, self.config.ssl))

    async def _secure(self, plain: asyncio.Transport, context: ssl.SSLContext) -> None:
        try:
            secured = await self.loop.start_tls(
                plain, self, context, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError:
            secured = None
        early, self._early = self._early, None
        if secured is None or plain.is_closing():  # it failed, took too long, or made room for others
            self.connections.discard(self)
            return
        self._begin(secured)
        if early:
            self.data_received(bytes(early))

    def _begin(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head_timer()
        self._end_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early += data
            return
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]:
            self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_stall_timer()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # a polite close would wait for ever for a client that does not read
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """JSON like all other errors; uvicorn calls it while it handles h11's error, which knows a better status."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        message = {431: "the headers of the request are too large", 501: "this encoding is not known"}
        self._refuse(status, message.get(status, "this is no valid HTTP request"))

    @property
    def busy(self) -> bool:
        """A request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _held(self) -> bool:
        """Its request was admitted, of which there are only so many: it makes room for no other connection."""
        return self.busy and ADMITTED in self.scope

    def _refuse(self, status: int, message: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # an answer that begins now would come after this one
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "bad_request"}
        body = json.dumps({"error": error}).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_head(self) -> None:
        """Gives the next request's headers a time, from their first byte; and what is left of a body, unread, none."""
        if self.busy:
            self._end_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.busy or self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, "the headers of the request came too slowly")
        else:
            self.transport.abort()

    def _watch_reader(self, before: int) -> None:
        self._end_stall_timer()
        self._stall_timer = self.loop.call_later(self.stalled_seconds, self._look_at_reader, before)

    def _look_at_reader(self, before: int) -> None:
        self._stall_timer = None
        waiting = self.transport.get_write_buffer_size()
        if waiting >= before:
            self.transport.abort()
        else:
            self._watch_reader(waiting)

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _make_room(self) -> None:
        if len(self.connections) <= self.most:
            return
        others = (c for c in self.connections if isinstance(c, Connection) and c is not self and not c._held)
        longest = min(others, key=lambda c: c._since, default=self)
        # One that is being ended counts no longer, though it is told of that only later.
        self.connections.discard(longest)
        longest.transport.abort()


class Server(uvicorn.Server):
    """Runs an application on bound sockets until ``stop``. The caller handles signals."""

    def __init__(
        self, app: ASGIApp, sockets: Sequence[socket], context: ssl.SSLContext | None = None
    ) -> None:
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # anybody can send those
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        config.load()
        config.ssl = context
        super().__init__(config)
        self._sockets = list(sockets)
        self._stopping = False
        self.busy_threads: list[threading.Thread] = []

    def stop(self) -> None:
        """Ends ``run`` soon. From any thread, or a signal's handler."""
        self._stopping = True

    def run(self, sockets: list[socket] | None = None) -> None:
        """Serves until it is stopped, and what the application has open is closed.

        Threads that still compute what nobody wants any more can't be ended: ``busy_threads`` has them afterwards.
        """
        before = set(threading.enumerate())
        Connection.most = min(_MOST_CONNECTIONS, _allowed_files() - _SPARE_FILES)
        _quiet_uvicorn()
        loop = asyncio.new_event_loop()
        try:
            loop.set_exception_handler(_on_loop_error)
            loop.run_until_complete(self.serve(self._sockets if sockets is None else sockets))
            self._cancel_rest(loop)
        finally:
            loop.close()
            made = [t for t in threading.enumerate() if t not in before and not t.daemon]
            end = time.monotonic() + _THREAD_SECONDS
            for thread in made:
                thread.join(max(0.0, end - time.monotonic()))
            self.busy_threads = [thread for thread in made if thread.is_alive()]

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """uvicorn's, but for TLS, which connections begin themselves."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise RuntimeError("the server's application could not be started")
        loop = asyncio.get_running_loop()

        def connection() -> Connection:
            return Connection(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            )

        self.servers = [
            await loop.create_server(connection, sock=each, backlog=1024) for each in sockets or []
        ]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        # Not by should_exit: where that is set while the application starts, some versions never end the application.
        return self._stopping or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Open answers are cancelled first, instead of waited for."""
        for task in list(self.server_state.tasks):
            task.cancel()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override,unused-ignore]
        yield

    def _cancel_rest(self, loop: asyncio.AbstractEventLoop) -> None:
        rest = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.wait(rest, timeout=_GRACE_SECONDS))
        loop.run_until_complete(loop.shutdown_asyncgens())


def _allowed_files() -> int:
    """How many files this process may have open; raised to what it may ask for, where that is more."""
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return 1 << 20
    wanted = _MOST_CONNECTIONS + 2 * _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    if soft == infinite:
        return 1 << 20
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            soft_wanted = wanted if hard == infinite else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft_wanted, hard))
            soft = soft_wanted
    return max(soft, 2 * _SPARE_FILES)


def _quiet_uvicorn() -> None:
    """What uvicorn and asyncio would tell of clients that misbehave interests nobody; errors are told by Boundary."""
    if not debug.level():
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if debug.level():
        loop.default_exception_handler(context)
