"""Running the application in tests: wait for what is to come true, never for a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Static

from tests.tui.panels import now
from tests.tui.thread_worker import ThreadWorker
from wgllm.engine import Event
from wgllm.fake import FakeEngine
from wgllm.sessions import SessionStore
from wgllm.tui.app import ChatApp
from wgllm.tui.base import Start
from wgllm.tui.message import MessageView


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A coroutine as a test."""

    @wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        asyncio.run(test(*arguments, **options))

    return run


class Running:
    """An application that runs, with what tests look at."""

    def __init__(self, app: ChatApp, pilot: Pilot[Any], store: SessionStore) -> None:
        self.app, self.pilot, self.store = app, pilot, store
        self.told: list[str] = []

    @property
    def worker(self) -> ThreadWorker:
        assert self.app.client is not None
        worker = self.app.client.worker
        assert isinstance(worker, ThreadWorker)
        return worker

    @property
    def engine(self) -> FakeEngine:
        assert self.worker.engine is not None
        return self.worker.engine

    async def until(self, true: Callable[[], object], what: str = "", seconds: float = 60.0) -> None:
        """Waits until ``true()``, and until what came with it is done and on the screen."""
        end = time.monotonic() + seconds
        while not now(true):
            assert time.monotonic() < end, f"never came: {what}\n{self.screen_text()}"
            await asyncio.sleep(0.01)
        await self.pilot.pause()

    def hold(self, at: int = 0) -> threading.Event:
        """The engine makes nothing more, of a reply from that token on, until the event is set."""
        engine, step, go_on = self.engine, self.engine.step, threading.Event()
        self.worker.holds.append(go_on)

        def held() -> list[Event]:
            if engine._waiting and engine._waiting[0].made >= at:
                go_on.wait()
            return step()

        engine.step = held  # type: ignore[method-assign]
        return go_on

    async def ready(self) -> None:
        await self.until(lambda: self.app.facts is not None and not self.app.loading, "the model")

    async def type(self, text: str) -> None:
        """Into the prompt, as a whole."""
        self.app.prompt_bar.prompt.take(text)
        await self.pilot.pause()

    async def send(self, text: str) -> None:
        """Types and presses Enter."""
        await self.type(text)
        self.app.prompt_bar.prompt.focus()
        await self.pilot.press("enter")

    async def command(self, text: str) -> None:
        """A command, without the completion that would take Enter."""
        await self.app.run_command(text)
        await self.pilot.pause()

    async def talk(self, text: str) -> MessageView:
        """Sends, and waits for the whole reply."""
        await self.ready()
        before = len(self.engine.requests)
        await self.send(text)
        await self.until(lambda: len(self.engine.requests) > before, "the request")
        return await self.replied()

    async def replied(self) -> MessageView:
        await self.until(lambda: self.app.reply is None, "the reply's end")
        # What stands beneath it comes after the text, which is parsed on a thread.
        await self.until(lambda: self.views[-1].message == self.app.path[-1], "the reply's last picture")
        return self.views[-1]

    @property
    def views(self) -> list[MessageView]:
        return self.app.conversation.views()

    def screen_text(self) -> str:
        """What stands on the screen."""
        height = self.app.size.height
        lines = self.app.screen._compositor.render_strips()
        return "\n".join("".join(s.text for s in strip).rstrip() for strip in lines[:height])

    def notes(self) -> str:
        """All messages that were told, also those that are gone."""
        return "\n".join(self.told)

    def contents(self) -> list[tuple[str, str]]:
        return [(m.role, m.content) for m in self.app.path]


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    replies: str | list[str] = "Hello there!",
    *,
    start: Start | None = None,
    size: tuple[int, int] = (80, 24),
    delay: float = 0.0,
    ctx_size: int = 8192,
    error: Exception | None = None,
    prepare: Callable[[ThreadWorker], None] = lambda worker: None,
    worker_class: type[ThreadWorker] = ThreadWorker,
    make: Callable[[Any], Any] | None = None,
    failures: bool = False,
) -> AsyncIterator[Running]:
    """The application over a store in ``folder`` and an engine that gives these replies, or the worker of ``make``.

    What a background task raised unforeseen is raised in the end, unless ``failures`` says that it is looked at.
    """

    def make_worker(listener: Any) -> ThreadWorker:
        worker = worker_class(
            listener, lambda: FakeEngine(replies, delay=delay, ctx_size=ctx_size, error=error)
        )
        prepare(worker)
        return worker

    model = folder / "fake.gguf"
    model.touch()
    with SessionStore.open(folder / "chats.db") as store:
        app = ChatApp(store, start or Start(default_model=str(model)), make or make_worker)
        told: list[str] = []
        notify = app.notify

        def listened(message: str, **options: Any) -> None:
            told.append(message)
            notify(message, **{**options, "timeout": 600})  # it may take long until it is looked at

        app.notify = listened  # type: ignore[method-assign, assignment]
        async with app.run_test(size=size, notifications=True) as pilot:
            run = Running(app, pilot, store)
            run.told = told
            yield run
            app.exit(0)
            # The loop ends before the screen is taken down, as it does outside of tests.
            assert app._task is not None
            await asyncio.wait([app._task], timeout=60)
    if not failures:
        for failure in app.failures:
            raise failure


def text_of(widget: Static) -> str:
    return str(widget.render())
