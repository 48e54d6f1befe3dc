"""What goes wrong while it runs: the model's process is killed, the terminal's size storms, enormous pastes."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.events import Paste

from tests.tui.running import in_loop, running
from wgllm.sessions import SessionStore
from wgllm.sessions_types import MessageState
from wgllm.tui.app import ChatApp
from wgllm.tui.banner import Banner
from wgllm.tui.base import Start
from wgllm.tui.dialogs import AskText, Choice, Help
from wgllm.tui.inspector import TokenInspector
from wgllm.tui.picker import ModelPicker
from wgllm.tui.settings import SettingsPanel
from wgllm.tui.text import clean
from wgllm.worker import Worker
from wgllm.worker_child import python_command

# A child that hangs at a place, once: as long as there is a file.
_HANGS = """
import sys, time
from pathlib import Path
flag, place = Path(sys.argv[1]), sys.argv[2]
sys.path[:] = sys.argv[3:]
from wgllm import fake, worker_process

def hang(*arguments, **options):
    print("hangs", file=sys.stderr, flush=True)
    while True:
        time.sleep(1)

if flag.exists():
    flag.unlink()
    if place == "loading":
        load = worker_process.WorkerProcess._load_fake
        def loading(self, **options):
            self._weights_read(1, 2)
            hang()
        worker_process.WorkerProcess._load_fake = loading
    elif place == "prefilling":
        fake.FakeEngine.step = hang
    else:
        step = fake.FakeEngine.step
        def stepping(engine):
            if engine._waiting[0].made == 20:
                hang()
            return step(engine)
        fake.FakeEngine.step = stepping
worker_process.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("place", ["loading", "prefilling", "decoding"])
def test_the_models_process_is_killed(tmp_path: Path, place: str) -> None:
    flag = tmp_path / "hang"
    flag.touch()

    class Fake(Worker):
        """A worker whose child has a FakeEngine."""

        def load(self, model: Any, **options: Any) -> Any:
            return self.load_fake("word " * 12)

    def make(listener: Any) -> Worker:
        command = python_command()
        return Fake(listener, command=[sys.executable, "-c", _HANGS, str(flag), place, *command[3:]])

    @in_loop
    async def check() -> None:
        async with running(tmp_path, make=make, size=(100, 30)) as run:
            app = run.app
            if place == "loading":
                await run.until(lambda: "loading 50%" in app.status.figures.doing, "hanging")
                await run.send("Go")  # waits for the model
                await run.until(lambda: app.reply is not None)
            else:
                await run.ready()
                await run.send("Go")
                if place == "prefilling":
                    await run.until(lambda: any("hangs" in line for line in worker_of(app).stderr), "hanging")
                else:
                    await run.until(lambda: app.reply and app.reply.tokens > 10, "tokens")
            pid = worker_of(app).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await run.until(lambda: app.query_one(Banner).shown and app.reply is None, "the banner")
            await run.pilot.pause()
            path = app.path
            assert path[-1].state is MessageState.ERROR and path[0].content == "Go"
            assert path[-1].content.startswith("word" if place == "decoding" else "")
            assert [m.content for m in run.store.path(path[0].session_id)] == [m.content for m in path]
            shown = run.screen_text()
            assert "SIGKILL" in shown and "F5" in shown and "F6" in shown
            labels = [str(button.label) for button in app.query("#banner-buttons Button")]
            assert len(labels) == len(set(labels)) >= 2, labels
            await run.type("a draft")
            await run.pilot.press("f5")
            await run.ready()
            assert not app.query_one(Banner).shown and app.prompt_bar.prompt.text == "a draft"
            assert worker_of(app).pid != pid
            await run.pilot.press("enter")
            await run.until(lambda: len(app.path) == 4 and app.reply is None, "the next answer")
            assert app.path[-1].content == "word " * 12 and app.path[-1].state is MessageState.COMPLETE
            await run.pilot.press("ctrl+r")
            await run.until(lambda: app.path[-1].n_siblings == 2 and app.reply is None, "one more")

    check()


def worker_of(app: ChatApp) -> Worker:
    assert app.client is not None and isinstance(app.client.worker, Worker)
    return app.client.worker


# Sizes


@in_loop
async def test_a_storm_of_sizes_while_a_reply_streams(tmp_path: Path) -> None:
    rng = random.Random(5)
    reply = "".join(f"Line {i} of *some* words\n\n```python\nx = {i}\n```\n\n" for i in range(16))
    async with running(tmp_path, reply, delay=0.02, size=(80, 24)) as run:
        await run.ready()
        await run.app.ask("Go")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 10)
        for i in range(100):
            assert run.app.reply is not None, "it streams"
            random_size = rng.randrange(20, 101), rng.randrange(5, 31)
            await resize(run, *{0: (20, 5), 1: (200, 60)}.get(i % 10, random_size))
            if run.app.reply.tokens > 300:  # enough is there to be wrapped: the rest comes at the end
                run.engine.delay = 0.5
        run.engine.delay = 0
        await resize(run, 80, 24)
        view = await run.replied()
        await run.until(lambda: run.app.conversation.at_end, "the end is followed")
        assert view.message.content == reply and view._shown == reply
        await run.until(lambda: "x = 15" in run.screen_text(), "its end")
        await run.until(lambda: not run.app.conversation.query_one("#to-end").display, "no hint")


async def resize(run: Any, width: int, height: int) -> None:
    from textual.events import Resize
    from textual.geometry import Size

    driver = run.app._driver
    driver._size = (width, height)
    run.app.post_message(Resize(Size(width, height), Size(width, height)))
    await run.until(lambda: run.app.size == (width, height), f"{width}x{height}")


@in_loop
async def test_sizes_while_a_screen_is_open(tmp_path: Path) -> None:
    async with running(tmp_path, "abc", size=(80, 24)) as run:
        run.app.settings["logprobs"] = 5
        await run.talk("Hi")
        opened: list[tuple[str, type[Any]]] = [
            ("/help", Help),
            ("/set", SettingsPanel),
            ("/model", ModelPicker),
            ("/context", Choice),
            ("/inspect", TokenInspector),
            ("/system", AskText),
        ]
        for typed, screen in opened:
            run.app.run_worker(run.app.run_command(typed))
            await run.until(lambda screen=screen: isinstance(run.app.screen, screen), typed)
            for size in ((20, 5), (200, 60), (41, 11), (80, 24)):
                await resize(run, *size)
            await run.pilot.pause()
            assert isinstance(run.app.screen, screen) and run.app.screen.size == (80, 24)
            await run.pilot.press("escape")
            await run.until(lambda: len(run.app.screen_stack) == 1, "back")
        view = await run.talk("Still there?")
        assert view.message.content == "abc"


# Pastes

_LENGTH = 100_000
PASTES: dict[str, Callable[[], str]] = {
    "one line": lambda: "word " * (_LENGTH // 5),
    "many lines": lambda: "a line of text\n" * (_LENGTH // 15) + "x" * (_LENGTH % 15),
    "control characters": lambda: "a\x1b[2J\x07\x9b5m\tb\r\n\x00\u202ec" * (_LENGTH // 17),
}


def test_enormous_pastes(tmp_path: Path) -> None:
    @in_loop
    async def check() -> None:
        expected = {}
        async with running(tmp_path, ctx_size=1 << 20) as run:
            await run.ready()
            for name, made in PASTES.items():
                pasted = made()
                text = clean(pasted.replace("\r\n", "\n").replace("\r", "\n"))
                prompt = run.app.prompt_bar.prompt
                prompt.post_message(Paste(pasted))
                await run.until(lambda prompt=prompt: prompt.text, "the paste")
                await run.pilot.press("y", "left", "x", "end", "backspace")
                assert len(prompt.text) < 100, "it stands for itself"
                expected[name] = text + "x"
                assert prompt.full_text == expected[name]
                await run.pilot.press("enter")
                await run.until(
                    lambda name=name: run.app.path and run.app.path[-2].content == expected[name], name
                )
                await run.replied()
            assert [m.content for m in run.app.path[::2]] == list(expected.values())
            prompt.post_message(Paste(PASTES["one line"]()))
            await run.until(lambda: prompt.text, "the draft")
            session = run.app.session
            assert session is not None
        start = Start(model=str(tmp_path / "fake.gguf"), resume=session.id)
        async with running(tmp_path, start=start, ctx_size=1 << 20) as run:
            prompt = run.app.prompt_bar.prompt
            assert prompt.full_text == PASTES["one line"]() and len(prompt.text) < 100
            await run.ready()
            await run.pilot.press("z", "enter")
            await run.until(
                lambda: run.app.path[-1].content == PASTES["one line"]() + "z" or len(run.app.path) > 7
            )
            assert run.app.path[6].content == PASTES["one line"]() + "z"

    check()


def test_a_store_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    """What is told by the program when its file is closed under it; the reply is shown all the same."""

    @in_loop
    async def check() -> None:
        async with running(tmp_path, "word " * 30, delay=0.2) as run:
            await run.ready()
            await run.app.ask("Go")
            await run.until(lambda: run.app.reply and run.app.reply.tokens > 3)
            run.store._database.close()
            run.engine.delay = 0.0
            view = await run.replied()
            assert view._shown == "word " * 30 and "may not be saved" in run.notes()

    check()
    with SessionStore.open(tmp_path / "chats.db") as store:
        assert store.path(1)[-1].state is MessageState.INTERRUPTED
