"""The main screens, one after the other in one run: what snapshots, contrast and pictures look at."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.command import CommandList
from textual.widgets import Input

from tests.tui.running import Running, running
from tests.tui.test_picker import Store
from wgllm.engine import Event
from wgllm.errors import WgllmError
from wgllm.sessions import SessionStore
from wgllm.tui.banner import Banner
from wgllm.tui.base import Start
from wgllm.tui.inspector import Candidate, Token, TokenInspector, TokenText
from wgllm.tui.lists import Models
from wgllm.tui.message import Fold, MessageView
from wgllm.tui.offer import Missing, Offer
from wgllm.tui.picker import ModelPicker
from wgllm.tui.settings import ValueInput
from wgllm.tui.sidebar import ChatList
from wgllm.tui.status import StatusLine

REPLY = '''\
<think>
The user wants a function and its use. Two numbers, so a table of three columns.
</think>

## Adding numbers

A *function* adds, and `sum` does it for **many**:

```python
def add(a: int, b: int = 1) -> int:
    """Adds two numbers."""
    return a + b  # not more
```

| a | b | sum |
|---|---|---|
| 1 | 2 | 3 |

1. Call `add(1, 2)`.
2. Read [the manual](https://docs.python.org).

> Numbers can be large.
'''
_FACTS = (
    ("Model", "Small 135M Instruct (Q4_K_M)"),
    ("Download", "98 MB"),
    ("Licence", "Apache-2.0"),
    ("From", "Hugging Face, org/small"),
)
Shot = Callable[[str], Awaitable[None]]
Scene = Callable[[Running, Shot], Awaitable[None]]


def still(patch: pytest.MonkeyPatch) -> None:
    """No clock, no speed and no cursor that blinks."""
    for module in ("sidebar", "welcome"):
        patch.setattr(f"wgllm.tui.{module}.when", lambda moment: "10:30")
    show = StatusLine.show

    def steady(line: StatusLine, **changes: Any) -> None:
        if "tok/s" in str(changes.get("doing", "")):
            changes["doing"] = "34.2 tok/s"
        show(line, **changes)

    patch.setattr(StatusLine, "show", steady)
    title = MessageView._reasoning_title

    def timeless(view: MessageView, text: str, going_on: bool) -> str:
        view._thought = view._thought and 0.0
        return title(view, text, going_on)

    patch.setattr(MessageView, "_reasoning_title", timeless)
    for name in ("TextArea", "Input"):
        patch.setattr(f"textual.widgets.{name}.cursor_blink", False)


@contextlib.asynccontextmanager
async def main_screens(folder: Path, size: tuple[int, int]) -> AsyncIterator[Running]:
    """An application that ``tour`` can lead through all scenes."""
    model = folder / "small.gguf"
    model.touch()
    with SessionStore.open(folder / "chats.db") as store:
        for question, answer in (
            ("Where do apples grow?", "On trees."),
            ("What do bees eat?", "Nectar and pollen."),
        ):
            session = store.new_session(model="small")
            store.append(session.id, "user", question)
            reply = store.begin_reply(session.id, model="small")
            store.finish_reply(reply.id, answer)
            store.rename(session.id, question)
    async with running(folder, [REPLY], size=size, start=Start(default_model=str(model))) as run:
        await run.ready()
        yield run


async def tour(run: Running, shot: Shot, through: Sequence[Scene] = ()) -> None:
    """Through the main screens, all or some, in this order; ``shot`` is awaited at each."""
    for scene in through or (
        welcome, completion, conversation, streaming, failed, sidebar, help_, palette, context, settings,
        picker, inspector, offer, banner,
    ):  # fmt: skip
        await scene(run, shot)


async def welcome(run: Running, shot: Shot) -> None:
    await shot("welcome")


async def completion(run: Running, shot: Shot) -> None:
    await run.type("/e")
    await shot("completion")
    await run.type("")


async def conversation(run: Running, shot: Shot) -> None:
    await run.talk("How do I add numbers?")
    await run.pilot.press("ctrl+r")
    await run.until(lambda: len(run.engine.requests) == 2, "the second request")
    view = await run.replied()
    await shot("conversation")
    view.query_one(Fold).open = True
    view.focus()
    await run.pilot.pause()
    run.app.conversation.messages.scroll_home(animate=False)
    await shot("message")
    view.query_one(Fold).open = False
    run.app.conversation.to_end()
    run.app.prompt_bar.prompt.focus()


async def streaming(run: Running, shot: Shot) -> None:
    engine, step = run.engine, run.engine.step
    half = REPLY[: REPLY.index("    return")]
    engine.replies = [half]

    def held() -> list[Event]:
        waiting = engine._waiting[0]
        if waiting.made == len(waiting.tokens) and waiting.number not in engine._cancelled:
            time.sleep(0.05)
            return []
        return step()

    engine.step = held  # type: ignore[method-assign]
    await run.send("And once more?")
    await run.until(lambda: run.app.reply and run.app.reply.text == half, "half a reply")
    view = run.views[-1]
    await run.until(lambda: view._shown == half.partition("</think>\n\n")[2], "its picture")
    await run.until(lambda: "tok/s" in run.app.status.text, "the speed")
    await shot("streaming")
    await run.pilot.press("escape")
    await run.replied()
    engine.step = step  # type: ignore[method-assign]
    await shot("stopped")


async def failed(run: Running, shot: Shot) -> None:
    run.engine.error = WgllmError("layer 3 (attention) made a NaN; wgllm check tells more")
    await run.talk("Does this work?")
    run.engine.error = None
    await shot("error")


async def sidebar(run: Running, shot: Shot) -> None:
    was = run.store.kept.get("sidebar")
    await run.command("/search apples")
    await run.until(lambda: run.app.sidebar.query_one(ChatList).option_count == 2, "what was found")
    await shot("search")
    run.app.hide_sidebar()
    run.store.kept.put("sidebar", was)


async def help_(run: Running, shot: Shot) -> None:
    await run.command("/help")
    await _dialog(run, shot, "help", ".dialog")


async def palette(run: Running, shot: Shot) -> None:
    await run.pilot.press("ctrl+p")
    await run.until(lambda: run.app.screen.query(CommandList), "the palette")
    commands = run.app.screen.query_one(CommandList)
    await run.until(lambda: commands.option_count > 3, "the commands")
    await _dialog(run, shot, "palette", "CommandInput")


async def context(run: Running, shot: Shot) -> None:
    task = asyncio.ensure_future(run.command("/context"))
    await run.until(lambda: len(run.app.screen_stack) > 1, "the question")
    await _dialog(run, shot, "context", ".dialog")
    await task


async def settings(run: Running, shot: Shot) -> None:
    await run.command("/set")
    await run.until(lambda: run.app.screen.query(".row"), "the settings")
    panel = run.app.screen
    panel.query_one("#value-temperature", ValueInput).value = "0.7"
    panel.query_one("#value-top_p", ValueInput).value = "7"
    panel.query_one("#value-temperature").focus()
    await run.pilot.pause()
    await shot("settings")
    await run.pilot.press("escape", "escape")
    await run.until(lambda: len(run.app.screen_stack) == 1, "the way back")


async def picker(run: Running, shot: Shot) -> None:
    run.app.push_screen(ModelPicker(Store("small"), current="small", memory=2_000_000_000))
    await run.until(lambda: run.app.screen.query("#models"), "the list")
    await run.until(lambda: run.app.screen.query_one(Models).option_count == 3, "the models")
    await _dialog(run, shot, "picker", "#detail")


async def inspector(run: Running, shot: Shot) -> None:
    run.app.push_screen(TokenInspector(_tokens(), index=1))
    await run.until(lambda: run.app.screen.query(TokenText), "the tokens")
    await _dialog(run, shot, "inspector", "#about")


async def offer(run: Running, shot: Shot) -> None:
    run.app.push_screen(Offer(Missing("small", _FACTS)))
    await _dialog(run, shot, "offer", "#offer-facts")


async def banner(run: Running, shot: Shot) -> None:
    run.worker.die()
    await run.until(lambda: run.app.query_one(Banner).shown, "the banner")
    await shot("banner")


async def all_at_once(run: Running, shot: Shot) -> None:
    """All parts of the main screen, with a message that has the focus."""

    async def unseen(name: str) -> None: ...

    await run.talk("How do I add numbers?")
    run.views[-1].query_one(Fold).open = True
    await failed(run, unseen)
    run.worker.die()
    await run.until(lambda: run.app.query_one(Banner).shown, "the banner")
    run.app.edit()
    await run.type("/e")
    run.app.sidebar.add_class("-shown")
    run.app.sidebar.query_one("#search", Input).value = "apples"
    run.app.sidebar.reload()
    run.app.conversation.messages.scroll_home(animate=False)
    await shot("all at once")


async def _dialog(run: Running, shot: Shot, name: str, selector: str) -> None:
    await run.until(lambda: run.app.screen.query(selector), name)
    await run.pilot.pause()
    await shot(name)
    await run.pilot.press("escape")
    await run.until(lambda: len(run.app.screen_stack) == 1, "the way back")


def _tokens() -> list[Token]:
    """One of each level of surprise, with what might have stood there."""
    shares = (
        (" An", 0.97, " The"),
        (" apple", 0.3, " pear"),
        (" falls", 0.1, " grows"),
        (" upwards", 0.01, " down"),
    )
    tokens = []
    for i, (text, share, other) in enumerate(shares):
        own = Candidate(2 * i, text, share, True, share / 0.99)
        beside = Candidate(2 * i + 1, other, 0.99 - share, True, 1 - share / 0.99)
        cut = Candidate(99, " zebra", 0.008, False)
        candidates = tuple(sorted((own, beside, cut), key=lambda c: -c.probability))
        tokens.append(Token(text, own.token_id, math.log(share), candidates, 2))
    return tokens
