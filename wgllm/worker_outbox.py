"""The sending end of a worker's child, and how the child ends when nobody hears it."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn

from wgllm.worker_protocol import Message, pack

# How long events wait for others to go with them: at most a hundred messages a second, no delay that one sees.
_HOLD_SECONDS = 0.01
# Of two progress messages, the later one stands for both.
_PROGRESS = ("loading", "prefilling")


class Outbox:
    """Sends messages in their order, in a thread of its own: whoever computes never waits for the parent."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting: list[Message] = []
        self._urgent = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
        self._thread.start()

    def post(self, message: Message) -> None:
        """Sends at once; for progress, no later than the next batch of events would go."""
        progress = message["type"] in _PROGRESS
        with self._changed:
            if progress and self._waiting and self._waiting[-1]["type"] == message["type"]:
                self._waiting[-1] = message
            else:
                self._waiting.append(message)
            self._urgent |= not progress
            self._changed.notify()

    def events(self, events: Sequence[list[Any]]) -> None:
        """Sends events, together with others that come soon."""
        with self._changed:
            idle = not self._waiting
            if not idle and self._waiting[-1]["type"] == "events":
                self._waiting[-1]["events"] += events
            else:
                self._waiting.append({"type": "events", "events": list(events)})
            if idle:  # else the sender knows already that something waits
                self._changed.notify()

    def close(self) -> None:
        """Sends what waits."""
        with self._changed:
            self._closed = self._urgent = True
            self._changed.notify()
        self._thread.join()

    def _send(self) -> None:
        sent = -math.inf
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closed)
                    self._changed.wait_for(lambda: self._urgent, sent + _HOLD_SECONDS - time.monotonic())
                    messages, self._waiting, self._urgent = self._waiting, [], self._closed
                if not messages:
                    return
                self._stream.write(b"".join(map(pack, messages)))
                self._stream.flush()
                sent = time.monotonic()
        except BaseException as error:
            if not isinstance(error, OSError):  # which says that nobody reads any more
                traceback.print_exc()
            end_with_group()


def end_with_group() -> NoReturn:
    """Ends this process and those that it started (pip), whatever the main thread does."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
