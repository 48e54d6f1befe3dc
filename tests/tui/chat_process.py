"""``wgllm chat`` as a process that tests can kill: the command itself, over a worker whose child answers as scripted.

    python -m tests.tui.chat_process TELL PLAN [arguments of wgllm chat]

TELL is the number of a pipe that it writes to what it is about to do and what is done, as JSON lines with the time.
PLAN is JSON: ``replies`` and ``delay`` of the engine, ``load_error``, ``where`` (where the model runs), ``notices``,
``deaths`` (last words of a process that ends), ``controlling`` (False: the terminal's end sends no SIGHUP),
``patience`` (seconds that ``Leaving`` waits for an orderly end; else a minute), ``tour`` (a question and words: unfolds
all that is folded, asks, and searches, then tells ``toured``).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.tui.terminal import take_terminal
from wgllm import cli
from wgllm.errors import WgllmError
from wgllm.sessions import SessionStore
from wgllm.sessions_shelf import Kept
from wgllm.sessions_types import Message
from wgllm.tui import app as application
from wgllm.tui import leaving
from wgllm.tui.banner import Banner
from wgllm.tui.message import Fold, MessageView
from wgllm.worker import Died, Loading, Notice, Worker

_SAVING = (
    "new_session",
    "append",
    "edit",
    "begin_reply",
    "regenerate",
    "finish_reply",
    "switch",
    "delete",
    "undelete",
)

plan: dict[str, Any] = {}
_pipe = -1
_lock = threading.Lock()


def tell(*what: Any) -> None:
    with _lock:
        os.write(_pipe, (json.dumps([time.monotonic(), *what]) + "\n").encode())


def announce() -> None:
    """Makes the store tell of all that changes a conversation: before, and when it is on the disk."""
    for name in _SAVING:
        setattr(SessionStore, name, _announced(name, getattr(SessionStore, name)))
    update = SessionStore.update_reply

    def update_reply(store: SessionStore, message_id: int, text: str) -> None:
        tell("text", message_id, len(text))
        update(store, message_id, text)

    SessionStore.update_reply = update_reply  # type: ignore[method-assign]
    flush = SessionStore.flush_due

    def flush_due(store: SessionStore) -> None:
        began = time.monotonic()
        flush(store)
        tell("flushed", began)

    SessionStore.flush_due = flush_due  # type: ignore[method-assign]
    put = Kept.put

    def kept(self: Kept, name: str, value: Any) -> None:
        if name == "session":
            tell("opening", value)
        put(self, name, value)
        if name == "session":
            tell("opened", value)

    Kept.put = kept  # type: ignore[method-assign]


def _announced(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def announced(store: SessionStore, *arguments: Any, **options: Any) -> Any:
        tell("doing", name)
        made = method(store, *arguments, **options)
        message = made if isinstance(made, Message) else None
        if message is None and isinstance(made, list) and made:  # of switching: the path
            message = made[-1]
        session = message.session_id if message is not None else getattr(made, "id", None)
        path = [m.id for m in store.path(session)] if session is not None else []
        tell("done", name, session, path)
        if isinstance(made, Message):
            kind = "begun" if made.state.value == "partial" else "saved"
            tell(kind, made.id, made.content, made.state.value)
        return made

    return announced


class ScriptedWorker(Worker):
    """A real worker whose child has a FakeEngine."""

    def load(self, model: Any, **options: Any) -> Any:
        if "load_error" in plan:
            failed: Future[Any] = Future()
            failed.set_exception(WgllmError(plan["load_error"]))
            return failed
        loaded = self.load_fake(plan.get("replies", "Hello!"), delay=plan.get("delay", 0.0), ctx_size=1 << 20)
        tell("worker", self.pid)
        told: Future[Any] = Future()

        def take(future: Future[Any]) -> None:
            if error := future.exception():
                told.set_exception(error)
                return
            told.set_result(replace(future.result(), where=plan.get("where", "a test")))
            for text in plan.get("notices", ()):
                self._listener(Loading("download", text, 1, 2))
                self._listener(Notice(text))
            for text in plan.get("deaths", ()):
                self._listener(Died(None, text, (text,)))

        loaded.add_done_callback(take)
        return told


class TellingChat(application.ChatApp):
    """Tells what it shows once it is there, and what is typed."""

    CSS_PATH = Path(application.__file__).with_name("styles.tcss")

    async def on_mount(self) -> None:
        self.set_interval(0.02, self._look)

    _told_shown = False
    _typed: Any = None
    _seen = 0

    def _look(self) -> None:
        if self.gone or not self._told_shown:
            self._tell_shown()
            return
        self._tell_typed()

    def notify(self, message: str, **options: Any) -> None:
        super().notify(message, **{**options, "timeout": 600})  # a slow machine would not have shown it

    def keep_place(self) -> None:
        telling = self._told_shown and not self.gone
        if telling:
            self._tell_typed()
        super().keep_place()
        if telling and self.opened:
            tell("kept", *self._typed)

    async def _failed(self, *arguments: Any) -> None:
        await super()._failed(*arguments)
        self.run_worker(self._tell_banner())

    async def on_model_died(self, event: Any) -> None:
        await super().on_model_died(event)
        self.run_worker(self._tell_banner())

    async def _tell_banner(self) -> None:
        await self._drawn()
        tell("banner", self.query_one(Banner).text)

    def _tell_typed(self) -> None:
        typed = [None if self.session is None else self.session.id, self.prompt_bar.prompt.full_text]
        if typed != self._typed:
            self._typed = typed
            tell("typed", *typed)

    def _tell_shown(self) -> None:
        """Once the conversation is on the screen as the store has it."""
        if self.gone or not self.opened or (self.facts is None and not self._load_error):
            return
        views = self.conversation.views()
        if not (views if self.path else self.conversation.query("Welcome")):
            return
        self._told_shown = True
        self._typed = [None if self.session is None else self.session.id, self.prompt_bar.prompt.full_text]
        tell("shown", *self._typed, [m.id for m in self.path], [_note(view) for view in views])
        if "tour" in plan:
            self.run_worker(self._tour(*plan["tour"]))

    async def _tour(self, question: str, words: str) -> None:
        await self._drawn()
        for fold in self.conversation.query(Fold):
            fold.open = True
        await self._drawn()
        await self.ask(question)
        while self.reply is not None:
            await asyncio.sleep(0.02)
        self.show_sidebar(words)
        await self._drawn()
        tell("toured")

    async def _drawn(self) -> None:
        for _ in range(3):
            drawn = asyncio.Event()
            self.call_after_refresh(drawn.set)
            await drawn.wait()


def _note(view: MessageView) -> str:
    note = view.query_one(".note")
    return str(note.render()) if note.display else ""


def main() -> int:
    global _pipe
    _pipe = int(sys.argv[1])
    plan.update(json.loads(sys.argv[2]))
    os.set_inheritable(_pipe, False)
    if plan.get("controlling", True):
        take_terminal()
    leaving.PATIENCE = plan.get("patience", 60.0)
    leaving._SAVING_SECONDS = 60.0
    announce()

    class Chat(TellingChat):
        def __init__(self, store: SessionStore, start: Any) -> None:
            super().__init__(store, start, ScriptedWorker)

    application.ChatApp = Chat  # type: ignore[misc]
    tell("started", os.getpid())
    return cli.main(["chat", *sys.argv[3:]])


if __name__ == "__main__":
    sys.exit(main())
