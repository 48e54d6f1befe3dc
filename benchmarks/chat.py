"""How soon ``wgllm chat`` answers: its start, keys while a reply streams, scrolling, many conversations.

    python benchmarks/chat.py [--only start,keys,history,sessions] [--seconds 8]

No model is needed: replies come from a FakeEngine in a process of its own. The start is that of the command in a
terminal of its own, beside what importing Textual alone takes; everything else runs in this process, where a frame
counts once it has been turned into what a terminal is sent. Milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from textual.events import Key, MouseScrollDown, MouseScrollUp

from wgllm.sessions import SessionStore
from wgllm.sessions_types import Conversation, Message, MessageState, Session
from wgllm.tui.app import ChatApp
from wgllm.tui.base import Start
from wgllm.tui.sidebar import ChatList
from wgllm.worker import Worker

ROOT = Path(__file__).parents[1]
SIZE = (100, 40)
BYTES_S = 200
"""Tokens a second: a FakeEngine makes a byte a step."""
PROSE = "Some **bold** words that go on for a line or two, with `code` and *more* of it to read. "
CODE = "def add(a, b):\n    return a + b  # the sum\n\n"
ROW = "| {0} | a word or two | {0}00 | more of them |\n"
REPLIES = {
    "prose": ("## A title\n\n" + 3 * PROSE + "\n\n- one\n- two\n\n") * 40,
    "code": "```python\n" + CODE * 300,
    "tables": ("| a | b | c | d |\n|---|---|---|---|\n" + "".join(ROW.format(i) for i in range(12)) + "\n")
    * 20,
    "one long paragraph": PROSE * 150,
}
PLACEHOLDER = b"Ask something"


def line(name: str, times: list[float]) -> None:
    """Median, 95th percentile and the longest."""
    times = sorted(times)
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    print(
        f"{name:44}{statistics.median(times) * 1e3:9.1f}{p95 * 1e3:9.1f}{times[-1] * 1e3:9.1f}{len(times):6}",
        flush=True,
    )


# The start


def start_seconds(folder: Path) -> tuple[float, float]:
    """Of one run in a terminal: until the prompt is painted, and until a key that is pressed then is."""
    import pty
    import select

    model = ROOT / "tests/data/tiny/llama-tied/llama-tied.f32.gguf"
    command = [sys.executable, "-m", "wgllm", "chat", "--db", str(folder / "start.db"), "-m", str(model)]
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "24", "cols", "80"], stdin=theirs, check=True)
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "WGLLM_BACKEND": "numpy"}
    began = time.perf_counter()
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True
    )
    os.close(theirs)
    painted, seen = 0.0, b""
    try:
        while time.perf_counter() - began < 60:
            if select.select([ours], [], [], 0.5)[0]:
                seen += os.read(ours, 65536)
            if not painted and PLACEHOLDER in seen:
                painted, seen = time.perf_counter() - began, b""
                os.write(ours, b"~")
            elif painted and b"~" in seen:
                return painted, time.perf_counter() - began
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    raise SystemExit(f"the prompt never came: {seen[-2000:]!r}")


def seconds_of(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return time.perf_counter() - began


def start(folder: Path, options: argparse.Namespace) -> None:
    start_seconds(folder)  # bytecode and the page cache
    runs = [start_seconds(folder) for _ in range(5)]
    line("start: the prompt is painted", [painted for painted, _ in runs])
    line("start: it takes a key", [key for _, key in runs])
    line("python -c 'import textual.app'", [seconds_of("import textual.app") for _ in range(5)])
    line("python -c 'import wgllm.tui.app'", [seconds_of("import wgllm.tui.app") for _ in range(5)])


# In this process


class Painted(ChatApp):
    """Counts its frames, each made into what a terminal would be sent."""

    CSS_PATH = ROOT / "tui/styles.tcss"
    frames = 0

    def _display(self, screen: Any, renderable: Any) -> None:
        super()._display(screen, renderable)
        if renderable is not None and hasattr(renderable, "render_segments"):
            renderable.render_segments(self.console)
            self.frames += 1

    async def frame_after(self, act: Callable[[], object]) -> float:
        """Seconds from ``act`` to the next frame."""
        before, began = self.frames, time.perf_counter()
        act()
        while self.frames == before and time.perf_counter() - began < 5:
            await asyncio.sleep(0)
        return time.perf_counter() - began


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.005)


@asynccontextmanager
async def painted(store: SessionStore, folder: Path, reply: str = "Yes.") -> AsyncIterator[Painted]:
    class Fake(Worker):
        """Its child has a FakeEngine."""

        def load(self, model: Any, **options: Any) -> Any:
            return self.load_fake(reply, delay=1 / BYTES_S, ctx_size=1 << 20)

    model = folder / "fake.gguf"
    model.touch()
    app = Painted(store, Start(default_model=str(model)), Fake)
    async with app.run_test(size=SIZE):
        await until(lambda: app.facts is not None and not app.loading)
        yield app
        app.exit(0)


async def keys(folder: Path, options: argparse.Namespace) -> None:
    for kind, text in REPLIES.items():
        with SessionStore.open(folder / f"{kind}.db") as store:
            async with painted(store, folder, text[: int(options.seconds * BYTES_S)]) as app:
                await app.ask("Go on")
                await until(lambda app=app: app.reply is not None and app.reply.tokens > 5)
                prompt, times, at_end = app.prompt_bar.prompt, [], []
                ended = 0.0
                while not ended or time.perf_counter() - ended < 0.5:
                    going = app.reply is not None
                    length = len(prompt.text)
                    began = time.perf_counter()
                    app.post_message(Key("x", "x"))
                    while len(prompt.text) == length:
                        await asyncio.sleep(0)
                    before = app.frames
                    while app.frames == before:
                        await asyncio.sleep(0)
                    (times if going else at_end).append(time.perf_counter() - began)
                    if not going and not ended:
                        ended = time.perf_counter()
                    if len(prompt.text) > 60:
                        prompt.take("")
                    await asyncio.sleep(0.05)
                line(f"key while streaming: {kind}", times)
                line("  in the half second after its end", at_end)


def conversation(n: int) -> Conversation:
    """A branch of ``n`` messages: questions, and replies with Markdown."""
    answer = 2 * PROSE + "\n\n```python\n" + CODE + "```\n\n- one\n- two\n"
    messages = tuple(
        Message(
            i + 1, 0, i or None, ("user", "assistant")[i % 2], (f"Question {i}?", answer)[i % 2],
            MessageState.COMPLETE, None, "fake", float(i), None, None, 1, 1,
        )
        for i in range(n)
    )  # fmt: skip
    return Conversation(
        Session(0, "Long", True, 0.0, float(n), leaf_id=n), messages, {i: i + 1 for i in range(1, n)}
    )


async def history(folder: Path, options: argparse.Namespace) -> None:
    with SessionStore.open(folder / "long.db") as store:
        long = store.add_conversation(conversation(500))
        async with painted(store, folder) as app:
            opened = []
            for _ in range(3):
                await app.open_session(None)
                await asyncio.sleep(0.2)
                began = time.perf_counter()
                await app.open_session(long.id)
                await app.frame_after(lambda: None)
                opened.append(time.perf_counter() - began)
            line("open a conversation of 500 messages", opened)
            messages = app.conversation.messages
            earlier, up, down, wheel = [], [], [], []
            while app.conversation._first and len(earlier) < 10:
                began = time.perf_counter()
                await app.conversation.show_earlier()
                await app.frame_after(lambda: None)
                earlier.append(time.perf_counter() - began)
                await asyncio.sleep(0.05)
            line("show 20 earlier messages", earlier)
            app.conversation.to_end()
            await asyncio.sleep(0.3)
            app.prompt_bar.prompt.focus()
            for times, key in ((up, "pageup"), (down, "pagedown")):
                for _ in range(60):
                    times.append(await app.frame_after(lambda key=key: app.post_message(Key(key, None))))
                    await asyncio.sleep(0.02)
            x, y = messages.region.center

            def turn(kind: type) -> None:
                app.post_message(kind(None, x, y, 0, 0, 0, False, False, False, x, y))

            for kind in [MouseScrollUp] * 60 + [MouseScrollDown] * 40:
                wheel.append(await app.frame_after(lambda kind=kind: turn(kind)))
                await asyncio.sleep(0.02)
            line("frame: page up, 220 messages shown", up)
            line("frame: page down", down)
            line("frame: mouse wheel", wheel)


async def sessions(folder: Path, options: argparse.Namespace) -> None:
    path = folder / "many.db"
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(2000)]
    with SessionStore.open(path) as store:
        for i in range(1000):
            few = conversation(4)
            words = tuple(
                m._replace(content=m.content + " ".join(rng.choices(vocabulary, k=60))) for m in few.messages
            )
            session = replace(few.session, title=" ".join(rng.choices(vocabulary, k=4)), updated=float(i))
            store.add_conversation(replace(few, session=session, messages=words))
        store.search("warm")
    began = time.perf_counter()
    with SessionStore.open(path) as store:
        store.kept.put("sidebar", True)
        async with painted(store, folder) as app:
            line("open a database of 1,000 conversations", [time.perf_counter() - began])
            field, chats = app.sidebar.query_one("#search"), app.sidebar.query_one(ChatList)
            times = []
            for word in vocabulary[:20]:
                times.append(await app.frame_after(lambda word=word: setattr(field, "value", word)))
                await until(lambda: chats.option_count < 500)
            line("search it for a word, painted", times)
            listed = []
            for _ in range(10):
                began = time.perf_counter()
                app.refresh_sidebar()
                field.value = ""
                await app.frame_after(app.refresh_sidebar)
                listed.append(time.perf_counter() - began)
            line("list 500 of them anew, painted", listed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="start,keys,history,sessions")
    parser.add_argument("--seconds", type=float, default=8, help="how long replies stream")
    options = parser.parse_args()
    print(f"{'':44}{'median':>9}{'p95':>9}{'longest':>9}{'n':>6}   ms")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = options.only.split(",")
        if "start" in parts:
            start(folder, options)
        for part, measure in (("keys", keys), ("history", history), ("sessions", sessions)):
            if part in parts:
                asyncio.run(measure(folder, options))


if __name__ == "__main__":
    main()
