"""Where one types: grows with the text, sends by Enter, recalls, completes, and takes large pastes in small."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.document._document import EditResult, Location, Selection
from textual.document._edit import Edit
from textual.events import Key, Paste
from textual.message import Message
from textual.widgets import OptionList, Static, TextArea
from textual.widgets.option_list import Option
from textual.worker import Worker

from wgllm.errors import UsageError
from wgllm.tui import attachments, commands
from wgllm.tui.attachments import Completion
from wgllm.tui.text import clean, clean_line, count

# What is longer is shown as one word, since wrapping it again at every key takes too long.
_LONG_PASTE = 2_000
_LONG_PASTE_LINES = 30
_PASTED = re.compile(r"\[pasted text (\d+): [\d,]+ (?:lines?|characters?)\]")
_COUNT_SECONDS = 0.3


class Prompt(TextArea):
    """The text. Enter sends; Shift+Enter and Ctrl+J break lines; Up in the first line recalls."""

    class Sent(Message):
        """Enter was pressed. ``text`` has what was pasted."""

        def __init__(self, text: str) -> None:
            self.text = text
            super().__init__()

    class Escaped(Message):
        """Escape was pressed."""

    def __init__(self, history: Sequence[str] = ()) -> None:
        self._pasted: dict[str, str] = {}
        """What was pasted, by the word that stands for it."""
        super().__init__(
            id="prompt",
            soft_wrap=True,
            tab_behavior="focus",
            highlight_cursor_line=False,
            compact=True,
            placeholder="Ask something · / commands · @ files",
        )
        self.sent_before = list(history)
        """What was sent before, the newest first."""
        self._recalled: int | None = None
        """Which of them stands there; -1: the text that was there before."""
        self._before_recall = ""

    @property
    def full_text(self) -> str:
        """The text with what was pasted."""
        return _PASTED.sub(lambda m: self._pasted.get(m[0], m[0]), self.text)

    def take(self, text: str) -> None:
        """Puts ``text`` there, the cursor at its end."""
        self._recalled = None
        self.load_text(self._shortened(clean(text)))
        self.move_cursor(self.document.end)

    def remember(self, text: str) -> None:
        """``text`` was sent."""
        if text.strip() and text not in self.sent_before[:1]:
            self.sent_before.insert(0, text)

    def put_back(self, text: str, dropped: str) -> None:
        """``text`` takes the place of what was given up, which Up brings back."""
        self.take(text)
        self.remember(dropped)
        self._recalled = -1

    def take_key(self, event: Key) -> None:
        """A key that was pressed where nothing can be typed."""
        bar = self.parent
        assert isinstance(bar, PromptBar)
        if self._handled(event.key, bar):
            return
        if event.key == "backspace":
            self.action_delete_left()
        elif event.is_printable and event.character is not None:
            self._replace_via_keyboard(event.character, *self.selection)

    def paste(self, text: str) -> None:
        """Puts it where the cursor is; a large text as one word."""
        shown = self._shortened(clean(text.replace("\r\n", "\n").replace("\r", "\n")))
        if result := self._replace_via_keyboard(shown, *self.selection):
            self.move_cursor(result.end_location)

    def _shortened(self, text: str) -> str:
        """A large text as one word that stands for it."""
        if len(text) <= _LONG_PASTE and text.count("\n") <= _LONG_PASTE_LINES:
            return text
        if (
            known := next((word for word, pasted in self._pasted.items() if pasted == text), None)
        ) is not None:
            return known
        lines = text.count("\n") + (not text.endswith("\n"))
        size = count(lines, "line") if lines > 1 else count(len(text), "character")
        word = f"[pasted text {len(self._pasted) + 1}: {size}]"
        self._pasted[word] = text
        return word

    # The word of a paste is one character to all that moves and deletes

    def _word_around(self, location: Location) -> tuple[Location, Location] | None:
        """The ends of the paste's word that ``location`` lies inside of."""
        row, column = location
        if not self._pasted or not 0 <= row < self.document.line_count:
            return None
        for found in _PASTED.finditer(self.document.get_line(row)):
            if found.start() < column < found.end() and found[0] in self._pasted:
                return (row, found.start()), (row, found.end())
        return None

    def validate_selection(self, selection: Selection) -> Selection:
        """The cursor jumps over a paste's word: where it goes, else to the end that is nearer."""
        start, end = (self._beside_word(location) for location in selection)
        return Selection(start, end)

    def _beside_word(self, location: Location) -> Location:
        if (word := self._word_around(location)) is None:
            return location
        left, right = word
        before = self.selection.end
        if before in word:
            return right if before == left else left
        return left if location[1] - left[1] < right[1] - location[1] else right

    def edit(self, edit: Edit) -> EditResult:
        """What would cut a paste's word takes all of it; nothing is put inside of one."""
        first, last = self._word_around(edit.top), self._word_around(edit.bottom)
        if first is not None or last is not None:
            top, bottom = first[0] if first else edit.top, last[1] if last else edit.bottom
            if edit.top == edit.bottom:
                top = bottom
            edit.from_location, edit.to_location = top, bottom
        return super().edit(edit)

    async def _on_paste(self, event: Paste) -> None:
        event.prevent_default()
        event.stop()
        self.paste(event.text)

    async def _on_key(self, event: Key) -> None:
        bar = self.parent
        assert isinstance(bar, PromptBar)
        if self._handled(event.key, bar):
            event.prevent_default()
            event.stop()

    def _handled(self, key: str, bar: PromptBar) -> bool:
        if bar.completing and key in ("up", "down", "tab", "enter", "escape"):
            return bar.completion_key(key)
        if key == "enter":
            self.post_message(self.Sent(self.full_text))
        elif key in ("shift+enter", "ctrl+j", "alt+enter"):
            self._replace_via_keyboard("\n", *self.selection)
        elif key == "escape":
            self.post_message(self.Escaped())
        elif key == "up" and self.cursor_at_first_line and (not self.text or self._recalled is not None):
            return self._recall(1)
        elif key == "down" and self.cursor_at_last_line and self._recalled is not None:
            return self._recall(-1)
        elif key in ("pageup", "pagedown"):
            scrolled = self.screen.query_one("#messages")
            (scrolled.scroll_page_up if key == "pageup" else scrolled.scroll_page_down)(animate=False)
        else:
            return False
        return True

    def _recall(self, by: int) -> bool:
        now = -1 if self._recalled is None else self._recalled
        then = now + by
        if then >= len(self.sent_before):
            return True
        if now < 0:
            self._before_recall = self.full_text
        if then < 0:
            self.take(self._before_recall)
            return True
        self.take(self.sent_before[then])
        self._recalled = then
        return True


class PromptBar(Vertical):
    """The prompt with what belongs to it: completions, attached files, what is edited."""

    def __init__(self, history: Sequence[str], count_tokens: Callable[[str], Awaitable[int | None]]) -> None:
        super().__init__(id="prompt-bar")
        self._history = history
        self._count_tokens = count_tokens
        self._found: list[Completion] = []
        self._quiet = False
        self._counting: Worker[None] | None = None
        self._counted: dict[str, int] = {}

    def compose(self) -> ComposeResult:
        yield Static("", markup=False, id="editing")
        yield OptionList(id="completions", markup=False, compact=True)
        yield Static("", markup=False, id="attached")
        yield Prompt(self._history)

    @on(Prompt.Sent)
    @on(Prompt.Escaped)
    def _seen(self) -> None:
        """What was told has been read. (The application, which may tell something new, gets the message later.)"""
        self.app.clear_notifications()

    def on_mount(self) -> None:
        for name in ("#editing", "#completions", "#attached"):
            self.query_one(name).display = False
        self._options.can_focus = False

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)

    @property
    def _options(self) -> OptionList:
        return self.query_one("#completions", OptionList)

    def say_editing(self, text: str) -> None:
        """A line above the prompt; none when ``text`` is empty."""
        label = self.query_one("#editing", Static)
        label.update(text)
        label.display = bool(text)

    # Completion

    @property
    def completing(self) -> bool:
        return bool(self._options.display)

    @on(TextArea.Changed)
    def _changed(self) -> None:
        prompt = self.prompt
        row, column = prompt.cursor_location
        line = prompt.document.get_line(row)[:column]
        if self._quiet:
            self._found, self._quiet = [], False
        elif prompt.document.line_count == 1 and line.startswith("/"):
            self._found = commands.complete(line)
        else:
            self._found = attachments.complete(line) if "@" in line else []
        options = self._options
        options.clear_options()
        width = max((len(c.text) for c in self._found), default=0)
        options.add_options(Option(f"{c.text.ljust(width)}  {c.hint}") for c in self._found)
        options.display = bool(self._found)
        if self._found:
            options.highlighted = 0
        self._look_at_files(prompt.text)

    def completion_key(self, key: str) -> bool:
        """What keys do while completions are shown; False: what they do otherwise."""
        options = self._options
        if key in ("up", "down"):
            (options.action_cursor_up if key == "up" else options.action_cursor_down)()
            return True
        if key == "escape":
            options.display = False
            return True
        chosen = self._found[options.highlighted or 0]
        row, column = self.prompt.cursor_location
        line = self.prompt.document.get_line(row)
        options.display = False
        if key == "enter" and line[chosen.start : column].strip() == chosen.text.strip():
            return self.prompt._handled("enter", self)  # it is complete: it is sent
        self._accept(chosen)
        return True

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._options.display = False
        self._accept(self._found[event.option_index])
        self.prompt.focus()

    def _accept(self, chosen: Completion) -> None:
        row, column = self.prompt.cursor_location
        self._quiet = not chosen.text.endswith("/")
        self.prompt.replace(chosen.text, (row, chosen.start), (row, column))
        self.prompt.move_cursor((row, chosen.start + len(chosen.text)))

    # Attached files

    def _look_at_files(self, text: str) -> None:
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        if "@" in text and not text.startswith("/"):
            self._counting = self.run_worker(self._show_files(text))
        else:
            self.query_one("#attached").display = False

    async def _show_files(self, text: str) -> None:
        """Which files would be sent, and how large they are."""
        await asyncio.sleep(_COUNT_SECONDS)
        parts = []
        for path in attachments.mentions(text):
            try:
                attached = await asyncio.to_thread(attachments.read, path)
            except UsageError as error:
                parts.append(f"✗ {error}")
                continue
            if attached is None:
                if "/" in path or "." in path.rstrip("."):
                    parts.append(f"✗ @{clean_line(path, 60)}: no such file, sent as text")
                continue
            size = attachments.size_text(len(attached.body.encode("utf-8", "replace")))
            if (tokens := self._counted.get(attached.body)) is None:
                known = await self._count_tokens(attached.body)
                if known is not None:
                    tokens = self._counted[attached.body] = known
            counted = "" if tokens is None else f" · {count(tokens, 'token')}"
            parts.append(f"+ {attached.name} · {size}{counted}")
        line = self.query_one("#attached", Static)
        line.update("\n".join(parts))
        line.display = bool(parts)
