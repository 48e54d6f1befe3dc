"""Errors of background tasks and handlers: told in a line, so that none of them ends the application."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from textual.message import Message
from textual.worker import Worker, WorkerFailed

from wgllm.errors import WgllmError
from wgllm.tui.base import ChatBase
from wgllm.tui.text import clean_line

_MOST_FAILURES = 20


class Guarded(ChatBase):
    """Tells what goes wrong. Only an exception in a handler that wgllm did not raise on purpose still ends it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.failures: list[BaseException] = []
        """Of background tasks, what wgllm did not raise on purpose: mistakes of its own. The first ones."""
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task beside the workers that one can wait for and cancel; its errors are told.

        As a worker it is cancelled before the screen is taken down: it never meets one without widgets.
        """
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _shutdown(self) -> None:
        # Textual removes the widgets here, one after the other. It cancels workers where its loop ends, which is
        # elsewhere when something else than the loop's end takes it down.
        self._running = False
        self.workers.cancel_all()
        while tasks := list(self._tasks):  # a key that was pressed before may begin one more
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await super()._shutdown()

    def run_worker(self, work: Any, *arguments: Any, **options: Any) -> Worker[Any]:
        """As ``App.run_worker``, for coroutines; their errors are told."""
        return super().run_worker(self._guarded(work), *arguments, **options)

    async def _guarded(self, work: Awaitable[Any] | Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await (work() if callable(work) else work)
        except Exception as error:
            self.tell_failure(error)

    def tell_failure(self, error: BaseException) -> None:
        """Tells an error in a line; one that nobody foresaw is also kept, for its traceback."""
        if isinstance(error, WgllmError):
            shown = str(error)
        else:
            shown = f"a mistake of wgllm's own: {type(error).__name__}: {clean_line(str(error), 200)}"
            self.log.error("".join(traceback.format_exception(error)))
            if len(self.failures) < _MOST_FAILURES:
                self.failures.append(error)
        if not self.gone:
            self.tell(shown, error=True)

    async def _dispatch_message(self, message: Message) -> None:
        # Textual ends the loop of a message pump whose handler raises, so this is the last place to catch it.
        try:
            await super()._dispatch_message(message)
        except WgllmError as error:
            self.tell_failure(error)

    def _handle_exception(self, error: Exception) -> None:
        # Those of widgets' background tasks too, which do not go through ``run_worker`` above.
        cause = error.error if isinstance(error, WorkerFailed) else error
        if isinstance(cause, WgllmError) or isinstance(error, WorkerFailed):
            self.tell_failure(cause)
        else:
            super()._handle_exception(error)
