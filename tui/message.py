"""One message: who, what, which of its branches, and how it ended."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Click, Key, Paste
from textual.message import Message as Posted
from textual.reactive import reactive
from textual.timer import Timer
from textual.widgets import Static

from wgllm.sessions_types import Message, MessageState
from wgllm.tui.markdown import ReplyMarkdown
from wgllm.tui.prompt import Prompt
from wgllm.tui.text import clean, clean_line, count, short_name, split_attached, split_reasoning

_LONG_LINES = 40
_LONG_CHARACTERS = 4_000
# Rendering again takes at most this share of the time, so that keys are never behind.
_RENDER_SHARE = 0.25
_RENDER_SECONDS = 0.05


class Fold(Vertical):
    """A title that a click folds what is below with."""

    open = reactive(False)

    def __init__(self, title: str, text: str, *, kind: str) -> None:
        super().__init__(classes=kind)
        self.text_title = title
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(self._shown_title(), markup=False, classes="fold-title")
        yield Static(self._text, markup=False, classes="fold-body")

    def on_mount(self) -> None:
        self._show()

    def watch_open(self) -> None:
        if self.is_mounted:
            self._show()

    def update(self, title: str, text: str) -> None:
        self.text_title, self._text = title, text
        if self.is_mounted:
            self._show()

    def _shown_title(self) -> str:
        return f"{'▾' if self.open else '▸'} {self.text_title}"

    def _show(self) -> None:
        self.query_one(".fold-title", Static).update(self._shown_title())
        body = self.query_one(".fold-body", Static)
        body.display = self.open
        if self.open:
            body.update(self._text)

    def on_click(self, event: Click) -> None:
        if event.widget is not None and event.widget.has_class("fold-title"):
            event.stop()
            self.open = not self.open


class Arrow(Static):
    """‹ or ›: the branch before or after."""

    def __init__(self, by: int) -> None:
        super().__init__("‹" if by < 0 else "›", markup=False, classes="arrow")
        self.by = by

    def on_click(self, event: Click) -> None:
        event.stop()
        view = next(a for a in self.ancestors if isinstance(a, MessageView))
        view.action_branch(self.by)


class MessageView(Vertical):
    """A message of the branch that is shown."""

    can_focus = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "copy", "Copy"),
        Binding("r", "regenerate", "Regenerate"),
        Binding("e", "edit", "Edit"),
        Binding("left", "branch(-1)", "Branch", key_display="←→"),
        Binding("right", "branch(1)", show=False),
        Binding("t", "fold", "Unfold"),
        Binding("i", "inspect", "Tokens"),
        Binding("up,k", "app.message(-1)", "Up", show=False),
        Binding("down,j", "app.message(1)", "Down", show=False),
    ]

    class Asked(Posted):
        """Something is to be done with a message."""

        def __init__(self, what: str, message: Message, by: int = 0) -> None:
            self.what, self.message, self.by = what, message, by
            super().__init__()

    def __init__(self, message: Message, *, streaming: bool = False) -> None:
        super().__init__(classes=f"message {message.role}")
        self.message = message
        self.streaming = streaming
        self._text = clean(message.content)
        """What is shown, cleaned; of a reply that goes on, also what is not shown yet."""
        self._shown = ""
        """The answer that the Markdown has."""
        self._next_render = 0.0
        self._fed: str | None = None
        self._began = time.monotonic()
        self._thought: float | None = None
        self._answer: ReplyMarkdown | None = None
        self._timer: Timer | None = None

    @property
    def is_reply(self) -> bool:
        return self.message.role == "assistant"

    def compose(self) -> ComposeResult:
        with Horizontal(classes="head"):
            yield Static(self._who(), markup=False, classes="who")
            yield Arrow(-1)
            yield Static(self._place(), markup=False, classes="place")
            yield Arrow(1)
        if self.is_reply:
            yield from self._reply()
        else:
            yield from self._typed()
        yield Static("", markup=False, classes="note")

    def _reply(self) -> ComposeResult:
        parts = split_reasoning(self._text)
        fold = Fold(
            self._reasoning_title(parts.reasoning or "", False), parts.reasoning or "", kind="reasoning"
        )
        fold.display = parts.reasoning is not None
        yield fold
        self._shown = parts.answer
        self._answer = ReplyMarkdown(parts.answer, streaming=self.streaming)
        yield self._answer

    def _typed(self) -> ComposeResult:
        files, text = split_attached(self._text)
        for name, body in files:
            yield Fold(f"{name} · {count(body.count(chr(10)) + 1, 'line')}", body, kind="attached")
        if len(text) > _LONG_CHARACTERS or text.count("\n") > _LONG_LINES:
            begin = "\n".join(text[:_LONG_CHARACTERS].split("\n")[: _LONG_LINES // 4])
            yield Static(begin, markup=False, classes="typed")
            rest = text[len(begin) :].lstrip("\n")
            yield Fold(f"{count(rest.count(chr(10)) + 1, 'more line')}", rest, kind="attached")
        else:
            yield Static(text, markup=False, classes="typed")

    def on_mount(self) -> None:
        self.show_facts(self.message)
        if self.streaming:
            self._timer = self.set_interval(_RENDER_SECONDS, self._stream)

    # What stands around the text

    def show_facts(self, message: Message) -> None:
        """Takes what changed of the message but for its text."""
        self.message = message
        several = message.n_siblings > 1
        for widget in self.query(".arrow, .place"):
            widget.display = several
        self.query_one(".place", Static).update(self._place())
        self.query_one(".who", Static).update(self._who())
        note = self.query_one(".note", Static)
        text = self._note()
        note.update(text)
        note.display = bool(text)
        self.set_class(message.state is MessageState.ERROR, "failed")
        self.refresh_bindings()

    def _who(self) -> str:
        if not self.is_reply:
            return {"user": "You", "system": "System", "tool": "Tool"}[self.message.role]
        return short_name(self.message.model)[:60] or "Model"

    def _place(self) -> str:
        return f"{self.message.position}/{self.message.n_siblings}"

    def _note(self) -> str:
        message = self.message
        stats: dict[str, Any] = message.stats or {}
        if message.state is MessageState.ERROR:
            error = clean_line(str(stats.get("error", "generating failed")), 500)
            return f"✗ {error} — r tries again"
        if message.state is MessageState.PARTIAL and not self.streaming:
            return "… being written by another window"
        if message.state is MessageState.STOPPED and not message.content:
            return "■ stopped before it began — r asks again"
        if message.state is MessageState.STOPPED:
            return "■ stopped; the text is kept — r asks again"
        if message.state is MessageState.INTERRUPTED:
            return "■ interrupted: the program ended while it was generated — r asks again"
        if message.finish_reason == "context":
            return "⚠ the context is full, so the reply ends here — /context chooses what to leave out"
        if message.finish_reason == "length":
            return "… the limit of tokens was reached — /set max_tokens changes it"
        return ""

    # A reply that goes on

    def begin(self) -> None:
        """The reply is generated from now on."""
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line in place of the reply while there is none."""
        note = self.query_one(".note", Static)
        note.update(text)
        note.display = bool(text)

    def feed(self, text: str) -> None:
        """What the reply has come to; it is shown soon."""
        self._fed = text

    async def _stream(self) -> None:
        began = time.monotonic()
        if not self.streaming or self._fed is None or began < self._next_render:
            return
        text, self._fed = self._fed, None
        self._next_render = math.inf
        await self._show_text(clean(text))
        # What changed has yet to be laid out and painted, which takes most of the time.
        self.call_after_refresh(self._painted, began)

    def _painted(self, began: float) -> None:
        now = time.monotonic()
        self._next_render = now + max(_RENDER_SECONDS, (now - began) * (1 / _RENDER_SHARE - 1))

    async def _show_text(self, text: str) -> None:
        assert self._answer is not None
        self._text = text
        parts = split_reasoning(text)
        fold = self.query_one(Fold)
        if parts.reasoning is not None:
            if not parts.thinking and self._thought is None:
                self._thought = time.monotonic() - self._began
            fold.display = True
            fold.update(self._reasoning_title(parts.reasoning, parts.thinking), parts.reasoning)
        if parts.answer.startswith(self._shown):
            if more := parts.answer[len(self._shown) :]:
                self._shown = parts.answer
                await self._answer.append(more)
        else:  # what had been an answer turned out to be reasoning
            self._shown = parts.answer
            await self._answer.update(parts.answer)

    def _reasoning_title(self, text: str, going_on: bool) -> str:
        words = count(len(text.split()), "word")
        if going_on:
            return f"Reasoning … {words}"
        seconds = f" for {self._thought:.0f} s" if self._thought and self._thought >= 1 else ""
        return f"Reasoned{seconds} · {words}"

    async def finish(self, message: Message) -> None:
        """The reply has ended: all of it, rendered at once."""
        self.streaming = False
        if self._timer is not None:
            self._timer.stop()
        text = clean(message.content)
        await self._show_text(text)
        assert self._answer is not None
        await self._answer.finish(self._shown)
        self.show_facts(message)

    # Keys and actions

    def on_key(self, event: Key) -> None:
        """Typing goes into the prompt, also what was typed before the focus got there."""
        if event.key == "escape":
            self.app.clear_notifications()
        prompt = self.screen.query_one(Prompt)
        if self.screen.focused is prompt:
            pass
        elif not event.is_printable or any(key in self.screen.active_bindings for key in event.aliases):
            return
        else:
            self.screen.set_focus(prompt)  # at once, as ``focus`` does not
        event.stop()
        event.prevent_default()
        prompt.take_key(event)

    def on_paste(self, event: Paste) -> None:
        event.stop()
        prompt = self.screen.query_one(Prompt)
        self.screen.set_focus(prompt)
        prompt.paste(event.text)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "branch":
            return self.message.n_siblings > 1
        if action == "edit":
            return self.message.role == "user"
        if action == "regenerate":
            return not self.streaming
        if action == "fold":
            return any(fold.display for fold in self.query(Fold))
        if action == "inspect":
            return self.is_reply and not self.streaming
        return True

    def action_fold(self) -> None:
        folds = list(self.query(Fold))
        unfold = not any(fold.open for fold in folds)
        for fold in folds:
            fold.open = unfold

    def action_branch(self, by: int) -> None:
        self.post_message(self.Asked("branch", self.message, by))

    def action_copy(self) -> None:
        self.post_message(self.Asked("copy", self.message))

    def action_regenerate(self) -> None:
        self.post_message(self.Asked("regenerate", self.message))

    def action_edit(self) -> None:
        self.post_message(self.Asked("edit", self.message))

    def action_inspect(self) -> None:
        self.post_message(self.Asked("inspect", self.message))

    def copied_text(self) -> str:
        """What copying takes: a reply without its reasoning."""
        if self.is_reply:
            parts = split_reasoning(self._text)
            return parts.answer or parts.reasoning or ""
        return self._text


class Divider(Static):
    """What lies above it is not sent to the model."""

    def __init__(self) -> None:
        super().__init__(
            Content("── earlier messages are not sent to the model; /context changes that ──"),
            classes="divider",
        )
