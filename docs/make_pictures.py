"""Makes the pictures of ``wgllm chat`` in docs/pictures: the application with a real model, as it runs.

    python docs/make_pictures.py [-m qwen2.5-coder:1.5b] [--folder docs/pictures] [--only code,tokens,settings,light]

The questions are fixed and sampling is greedy (or has a seed), on the NumPy backend, so that another run gives the same
text. Each conversation is kept in a database of its own that is deleted again. Speeds are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from textual.pilot import Pilot

from wgllm.sessions import SessionStore
from wgllm.tui.app import ChatApp
from wgllm.tui.banner import Banner
from wgllm.tui.base import Start
from wgllm.tui.inspector import TokenInspector
from wgllm.tui.settings import SettingsPanel

PICTURES = Path(__file__).parent / "pictures"
EARLIER = (
    ("A regular expression for dates", "It matches four digits, a dash, two digits …"),
    ("Explain this traceback", "The list is empty, so that max() has nothing to …"),
    ("Sort a table in SQL", "ORDER BY sorts the rows of a result."),
)
"""Titles and replies of conversations that the list has besides."""
CODE = "Write a Python function is_prime(n). Answer with the code only, without examples."
TOKENS = "Write one sentence about the sea."
TABLE = "List the planets Mercury, Venus and Earth with their number of moons, as a Markdown table. No other text."
PATIENCE = 900.0
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


class Session:
    """The application while it runs, with what pictures wait for."""

    def __init__(self, app: ChatApp, pilot: Pilot[Any]) -> None:
        self.app, self.pilot = app, pilot

    async def until(self, true: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > end or self.app.query_one(Banner).shown:
                raise SystemExit(f"{what} never came. {self.app.query_one(Banner).text}")
            await asyncio.sleep(0.05)
        await self.pilot.pause()

    async def ask(self, question: str) -> None:
        await self.until(lambda: self.app.facts is not None and not self.app.loading, "the model")
        before = len(self.app.path)
        await self.app.ask(question)
        await self.until(lambda: len(self.app.path) > before and self.app.reply is None, "the reply")
        await self.until(lambda: not self.app.conversation.views()[-1].streaming, "its picture")


async def code(run: Session) -> None:
    await run.ask(CODE)
    run.app.show_sidebar()
    run.app.prompt_bar.prompt.focus()


async def tokens(run: Session) -> None:
    run.app.settings |= {"sampling": {"seed": 1}}
    await run.ask(TOKENS)
    await run.app.run_command("/inspect")
    await run.until(lambda: isinstance(run.app.screen, TokenInspector), "the inspector")
    await run.pilot.press("n")


async def settings(run: Session) -> None:
    await run.until(lambda: run.app.facts is not None and not run.app.loading, "the model")
    await run.app.run_command("/set")
    await run.until(lambda: isinstance(run.app.screen, SettingsPanel), "the settings")
    await run.pilot.press(*["tab"] * 4)


async def light(run: Session) -> None:
    await run.ask(TABLE)


Picture = tuple[Callable[[Session], Awaitable[None]], tuple[int, int], str, str]
TABLE_OF_PICTURES: dict[str, Picture] = {
    "code": (code, (110, 30), "textual-dark", "wgllm chat"),
    "tokens": (tokens, (90, 24), "textual-dark", "What the model might have said instead"),
    "settings": (settings, (84, 30), "tokyo-night", "Settings"),
    "light": (light, (56, 24), "textual-light", "wgllm chat"),
}


def portable(svg: str) -> str:
    """The picture without fonts that would have to be fetched: those of the reader, in the same columns."""
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: ?(Fira Code|arial)[^;]*;", f"font-family: {FONT};", svg)
    return re.sub(r"[ \t]+\n", "\n", svg)


async def make(name: str, folder: Path, model: str, make_worker: Any = None) -> Path:
    """Plays one of the table and writes its picture."""
    play, size, theme, title = TABLE_OF_PICTURES[name]
    with tempfile.TemporaryDirectory() as place, SessionStore.open(Path(place) / "chats.db") as store:
        for earlier, reply in EARLIER:
            session = store.new_session(model=model)
            store.append(session.id, "user", earlier)
            store.finish_reply(store.begin_reply(session.id, model=model).id, reply)
            store.rename(session.id, earlier)
        start = Start(
            model=model,
            default_model=model,
            options={"backend": "numpy"},
            sampling={"temperature": 0.0},
            offline=True,
        )
        app = ChatApp(store, start, make_worker)
        async with app.run_test(size=size) as pilot:
            app.theme = theme
            run = Session(app, pilot)
            await play(run)
            app.clear_notifications()
            app.status.show(doing="")  # a picture is no measurement
            await pilot.pause()
            await asyncio.sleep(0.3)
            path = folder / f"{name}.svg"
            path.write_text(portable(app.export_screenshot(title=title)), encoding="utf-8", newline="\n")
            app.exit(0)
    return path


def main(arguments: list[str] | None = None, make_worker: Any = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="qwen2.5-coder:1.5b")
    parser.add_argument("--folder", type=Path, default=PICTURES)
    parser.add_argument("--only", default=",".join(TABLE_OF_PICTURES))
    options = parser.parse_args(arguments)
    os.environ.pop("NO_COLOR", None)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        path = asyncio.run(make(name, options.folder, options.model, make_worker))
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
