"""Server-sent events for a client that may read slowly, or be gone.

What is made goes into a buffer at once, so that the engine never waits for a client, and from there to it. A client
that leaves too much in the buffer, or takes nothing for a while, is left. As long as nothing else is to be said, a
comment is sent now and then, so that nobody on the way takes the connection for dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wgllm.errors import UsageError
from wgllm.serve.errors import answer_to, noted
from wgllm.serve.refusals import Refused

_COMMENT = b": still there\n\n"
_DONE = b"data: [DONE]\n\n"
_HEADERS = {
    "cache-control": "no-cache, no-store",
    "x-accel-buffering": "no",  # nginx: pass on what comes as it comes
}


class SlowReader(UsageError):
    """A client reads more slowly than anyone should wait for."""


class Outflow:
    """What waits to be sent to one client."""

    def __init__(self, limit: int) -> None:
        """Holds at most ``limit`` bytes."""
        self._limit = limit
        self._held: list[bytes] = []
        self._size = 0
        self._progress = b""
        self._something = asyncio.Event()
        self.begun = False
        """Whether anything but progress has been put in."""
        self.ended = False

    def put(self, message: dict[str, Any]) -> None:
        """Raises SlowReader."""
        data = _event(message)
        self._size += len(data)
        if self._size > self._limit:
            raise SlowReader("the client does not read what it asked for")
        self._held.append(data)
        self.begun = True
        self._something.set()

    def progress(self, message: dict[str, Any]) -> None:
        """Takes the place of what was told before, if that has not gone yet."""
        self._progress = _event(message)
        self._something.set()

    def end(self) -> None:
        self.ended = True
        self._something.set()

    async def take(self, seconds: float) -> bytes:
        """All that waits, after ``seconds`` at most; empty when nothing came, or at the end."""
        if not self._something.is_set():
            # Not asyncio.wait_for: before Python 3.12 it may lose a cancel.
            with anyio.move_on_after(seconds):
                await self._something.wait()
        self._something.clear()
        data = self._progress + b"".join(self._held)
        self._progress, self._held, self._size = b"", [], 0
        return data


class EventStream(Response):
    """The events that ``make`` puts into the flow that it is given, and ``[DONE]``.

    The status is sent with the first of them, or with the first comment: an error before that has a status of its own,
    one after it is the last event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        make: Callable[[Outflow], Coroutine[Any, Any, None]],
        *,
        comment_seconds: float = 10.0,
        stall_seconds: float = 60.0,
        limit: int = 8 << 20,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._make = make
        self._comment_seconds, self._stall_seconds = comment_seconds, stall_seconds
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_there(receive, self._stream(scope, receive, send))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        flow = Outflow(self._limit)
        making = asyncio.create_task(self._made(flow, scope))
        try:
            with contextlib.suppress(TimeoutError):
                # A client that takes nothing is left: the server closes a connection whose response has no end.
                await self._send(flow, making, scope, receive, send)
        finally:
            await _ended(making)

    async def _made(self, flow: Outflow, scope: Scope) -> Refused | None:
        """What went wrong."""
        try:
            await self._make(flow)
        except Exception as error:
            return noted(error, scope)
        finally:
            flow.end()
        return None

    async def _send(
        self, flow: Outflow, making: asyncio.Task[Refused | None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def out(message: dict[str, Any]) -> None:
            with anyio.fail_after(self._stall_seconds):
                await send(message)

        started = False
        while True:
            data = await flow.take(self._comment_seconds)
            # Looked at once: it may end whenever something is waited for.
            refused = await making if (ended := flow.ended) else None
            if refused is not None and not started and not data:
                await answer_to(refused)(scope, receive, send)
                return
            if not started:
                started = True
                head = {"status": self.status_code, "headers": self.raw_headers}
                await out({"type": "http.response.start", **head})
            if ended:
                data += _DONE if refused is None else _event(refused.event())
            await out({"type": "http.response.body", "body": data or _COMMENT, "more_body": not ended})
            if ended:
                return


class Whole(Response):
    """The response that ``make`` comes to, unless its client leaves before."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Response]]) -> None:
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_there(receive, self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._make()
        await response(scope, receive, send)


async def while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does ``work``, which is cancelled when the client leaves. The request's body has been read."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        await _ended(working)
        await _ended(gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancels a task and waits until it has cleaned up; its errors have been seen."""
    while not task.done():
        task.cancel()  # again, should anything on the way have lost it
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.exception()


def _event(message: dict[str, Any]) -> bytes:
    # ASCII: some clients take U+2028 and the like for the end of a line.
    return b"data: " + json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"
