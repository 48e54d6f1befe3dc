"""A model's process that does not answer any more."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.tui.running import Running, in_loop
from wgllm.sessions import SessionStore
from wgllm.sessions_types import MessageState
from wgllm.tui import replies
from wgllm.tui.app import ChatApp
from wgllm.tui.base import Start
from wgllm.worker import Worker


class Fake(Worker):
    """Its child has a FakeEngine."""

    def load(self, model: Any, **options: Any) -> Any:
        return self.load_fake("word " * 4000, delay=0.005)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
@in_loop
async def test_a_second_escape_starts_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_UNHEARD_SECONDS", 0.2)
    model = tmp_path / "fake.gguf"
    model.touch()
    with SessionStore.open(tmp_path / "chats.db") as store:
        app = ChatApp(store, Start(model=str(model)), Fake)
        async with app.run_test(size=(80, 24)) as pilot:
            until = Running(app, pilot, store).until
            await until(lambda: app.facts is not None)
            await app.ask("Go")
            await until(lambda: app.reply and app.reply.tokens > 10)
            assert app.client is not None and isinstance(app.client.worker, Worker)
            pid = app.client.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            await pilot.press("escape")
            await asyncio.sleep(0.3)
            assert app.reply is not None and app.client.worker.pid == pid
            await pilot.press("escape")
            await until(lambda: app.reply is None and app.facts is not None and not app.loading)
            assert app.client.worker.pid != pid
            stopped = app.path[-1]
            assert stopped.state is MessageState.STOPPED and stopped.content.startswith("word")
            await app.ask("Again")
            await until(lambda: app.reply and app.reply.tokens > 3)
            await pilot.press("escape")
            await until(lambda: app.reply is None)
