"""The model picker: installed models and the catalogue's in one list, fetching and deleting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.events import Resize
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Button, Input, ProgressBar, Static
from textual.widgets.option_list import Option

from wgllm.catalog import Entry
from wgllm.errors import WgllmError
from wgllm.hub_progress import size_text
from wgllm.tui.download import Download, DownloadCame, DownloadEnded, DownloadSaid, Pace
from wgllm.tui.lists import ClickButton, FilterInput, Models
from wgllm.tui.picker_models import HubStore, ModelRow, ModelStore, is_source, model_rows
from wgllm.tui.text import clean_line

T = TypeVar("T")
_TYPED = "typed"


@dataclass(frozen=True)
class Choice:
    """The model that was chosen; it is here."""

    name: str
    """What ``wgllm.hub.resolve`` takes: a name of the catalogue, a Hugging Face name or a path."""
    path: Path


class ModelPicker(ModalScreen["Choice | None"]):
    """Dismisses with the model that was chosen, fetched if need be; None when none was.

    With nothing installed it begins with an offer to fetch the catalogue's default. ``memory`` is what a model may take
    in bytes; models whose files are larger are marked. ``current`` is the name of the model in use.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("up", "move('cursor_up')", show=False),
        Binding("down", "move('cursor_down')", show=False),
        Binding("pageup", "move('page_up')", show=False),
        Binding("pagedown", "move('page_down')", show=False),
        Binding("y", "confirm", show=False),
        Binding("n", "back", show=False),
    ]
    DEFAULT_CSS = """
    ModelPicker { align: center middle; }
    ModelPicker #picker {
        width: 100%; max-width: 104; height: 100%; max-height: 34;
        border: round $primary; background: $surface; padding: 0 1;
    }
    ModelPicker #picker.small { height: auto; padding: 1 2; }
    ModelPicker FilterInput { margin-bottom: 1; background: $boost; }
    ModelPicker Models {
        height: 1fr; background: $surface;
        scrollbar-size-vertical: 1; scrollbar-gutter: stable;
    }
    ModelPicker Models > .option-list--option-highlighted {
        background: $block-cursor-background; color: $block-cursor-foreground;
    }
    ModelPicker #list { height: 1fr; }
    ModelPicker #ask, ModelPicker #fetch { height: auto; }
    ModelPicker #bar, ModelPicker #bar Bar { width: 100%; }
    ModelPicker #fetch-line { margin-bottom: 1; }
    ModelPicker #fetch-news { color: $text-muted; }
    ModelPicker #detail { height: auto; max-height: 3; color: $text-muted; margin-top: 1; }
    ModelPicker #note { height: auto; max-height: 4; color: $text-muted; }
    ModelPicker #note.problem { color: $text-error; }
    ModelPicker .buttons { height: auto; width: 100%; margin-top: 1; }
    ModelPicker .buttons Button { margin-right: 1; min-width: 0; width: auto; }
    """

    mode: reactive[str] = reactive("list", init=False)
    """``list``, ``ask`` (to fetch or to delete) or ``fetch``."""

    def __init__(
        self, store: ModelStore | None = None, *, memory: int | None = None, current: str | None = None
    ) -> None:
        super().__init__()
        self._store = HubStore() if store is None else store
        self._memory = memory
        self._current = current
        self._rows: list[ModelRow] = []
        self._shown: list[ModelRow] = []
        self._asked: Callable[[], None] | None = None
        self._download: Download | None = None
        self._pace = Pace()
        self._news: deque[str] = deque(maxlen=5)

    def compose(self) -> ComposeResult:
        with Vertical(id="picker") as picker:
            picker.border_title = "Model"
            with Vertical(id="list"):
                yield FilterInput(placeholder="filter, path or hf:org/repo:quant", id="filter", compact=True)
                yield Models(id="models", markup=False, compact=True)
                yield Static("", id="detail", markup=False)
            with Vertical(id="ask"):
                yield Static("", id="question", markup=False)
                with Horizontal(classes="buttons"):
                    yield Button("Yes", id="yes", variant="primary", compact=True)
                    yield Button("No", id="no", compact=True)
            with Vertical(id="fetch"):
                yield Static("", id="fetch-title", markup=False)
                yield ProgressBar(id="bar", show_eta=False, show_percentage=False)
                yield Static("", id="fetch-line", markup=False)
                yield Static("", id="fetch-news", markup=False)
                with Horizontal(classes="buttons"):
                    yield Button("Stop", id="stop", compact=True)
            yield Static("", id="note", markup=False)
            with Horizontal(classes="buttons", id="list-buttons"):
                yield ClickButton("Choose", id="choose", variant="primary", compact=True)
                yield ClickButton("Delete…", id="delete", compact=True)
                yield ClickButton("Close", id="close", compact=True)

    def on_mount(self) -> None:
        self._note("")
        self.watch_mode()
        self._in_background(self._refresh(first=True))

    def on_unmount(self) -> None:
        if self._download is not None:
            self._download.stop()

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._show_rows)

    # The list

    async def _refresh(self, *, first: bool = False) -> None:
        installed = await self._ask_store(self._store.installed)
        if installed is None:
            installed = []
        catalog = self._store.catalog()
        self._rows = model_rows(catalog, installed, self._memory)
        self._show_rows()
        if first:
            names = [row.name for row in self._shown]
            self._models.highlighted = names.index(self._current) if self._current in names else 0
            if not installed and not self.query_one("#note").has_class("problem"):
                self._offer(next(r for r in self._rows if r.entry is catalog.default), welcome=True)

    @property
    def _models(self) -> Models:
        return self.query_one(Models)

    @property
    def _typed(self) -> str:
        return self.query_one("#filter", Input).value.strip()

    @property
    def _highlighted(self) -> ModelRow | None:
        """None: what was typed, or nothing."""
        option = self._models.highlighted_option
        return None if option is None or option.id == _TYPED else self._shown[int(option.id or 0)]

    def _show_rows(self) -> None:
        """The rows that have what was typed, in the list's present width."""
        models, typed = self._models, self._typed
        if not models.size.width:
            return
        before = self._highlighted
        words = typed.split()
        self._shown = [row for row in self._rows if row.has(words)]
        width = models.scrollable_content_region.width or models.size.width
        options = [Option(row.line(width), id=str(i)) for i, row in enumerate(self._shown)]
        if typed and is_source(typed):
            verb = "Use" if typed.startswith("hf:") else "Open"
            options.insert(0, Option(clean_line(f"{verb} {typed}"), id=_TYPED))
        models.set_options(options)
        if options:
            at = self._shown.index(before) if before in self._shown else 0
            models.highlighted = 0 if options[0].id == _TYPED else at
        self._show_detail()

    @on(Models.OptionHighlighted)
    def _show_detail(self) -> None:
        row = self._highlighted
        if row is not None:
            text = row.detail()
        elif self._models.option_count:
            text = "A GGUF file or a folder, or a repository on Hugging Face."
        else:
            text = (
                "Nothing has these words. hf:org/repo names any repository on Hugging Face."
                if self._rows
                else ""
            )
        self.query_one("#detail", Static).update(text)
        self.query_one("#delete", Button).disabled = row is None or row.path is None

    @on(Input.Changed)
    def _filter(self) -> None:
        self._note("")
        self._show_rows()

    def action_move(self, action: str) -> None:
        if self.mode == "list":
            getattr(self._models, f"action_{action}")()

    # Choosing

    @on(Input.Submitted)
    @on(Models.OptionSelected)
    @on(Button.Pressed, "#choose")
    def _choose(self) -> None:
        option, row = self._models.highlighted_option, self._highlighted
        self._note("")
        if option is None:
            return
        if row is None:
            self._in_background(self._take_typed(self._typed))
        elif not row.runs:
            family = row.entry.architecture if row.entry else ""
            self._note(f"This version can't run {row.name}: its family, {family}, is to come.", problem=True)
        elif row.path is not None:
            self.dismiss(Choice(row.name, row.path))
        else:
            self._offer(row)

    async def _take_typed(self, typed: str) -> None:
        meant = await self._ask_store(lambda: self._store.identify(typed))
        if isinstance(meant, Entry):
            row = next(row for row in self._rows if row.entry is meant)
            if row.path is not None:
                self.dismiss(Choice(row.name, row.path))
            else:
                self._offer(row)
        elif isinstance(meant, Path):
            self.dismiss(Choice(typed, meant))
        elif meant is not None:
            self._fetch(typed, typed)

    def _offer(self, row: ModelRow, *, welcome: bool = False) -> None:
        entry = row.entry
        assert entry is not None
        lines = ["There is no model here yet. This one is small and answers at once:", ""] if welcome else []
        about = " · ".join(part for part in (row.parameters, row.quant) if part)
        lines += [
            f"{entry.title} ({entry.name})",
            f"  {about}",
            f"  size: {'?' if row.size is None else row.size_shown}",
            f"  licence: {entry.licence_text}",
            f"  place: {self._store.folder(entry)}",
        ]
        if row.fits is False:
            lines += ["", f"Its file is larger than the memory there is ({size_text(self._memory or 0)})."]
        no = "Other models" if welcome else "Back"
        self._ask("\n".join(lines), "Fetch", no, lambda: self._fetch(entry.name, entry.title))

    def _ask(
        self, question: str, yes: str, no: str, then: Callable[[], None], *, careful: bool = False
    ) -> None:
        self._asked = then
        self.query_one("#question", Static).update("\n".join(map(_indented, question.split("\n"))))
        self.query_one("#yes", Button).label = yes
        self.query_one("#yes", Button).variant = "error" if careful else "primary"
        self.query_one("#no", Button).label = no
        self.mode = "ask"
        keys = f"y {yes.lower()}" if careful else f"⏎ {yes.lower()}"
        self.query_one("#picker").border_subtitle = f"{keys} · Esc {no.lower()}"
        self.query_one("#no" if careful else "#yes").focus()

    @on(Button.Pressed, "#yes")
    def action_confirm(self) -> None:
        if self.mode == "ask" and self._asked is not None:
            then, self._asked = self._asked, None
            self.mode = "list"
            then()

    @on(Button.Pressed, "#no")
    @on(Button.Pressed, "#stop")
    @on(Button.Pressed, "#close")
    def action_back(self) -> None:
        if self.mode == "list":
            self.dismiss(None)
        elif self.mode == "fetch" and self._download is not None:
            self._download.stop()
            self._download = None
            self._note("Stopped. What has come is kept; choosing it again goes on from there.")
            self.mode = "list"
        else:
            self.mode = "list"

    def watch_mode(self) -> None:
        for name in ("list", "ask", "fetch"):
            self.query_one(f"#{name}").display = self.mode == name
        self.query_one("#list-buttons").display = self.mode == "list"
        picker = self.query_one("#picker")
        picker.set_class(self.mode != "list", "small")
        if self.mode == "list":
            picker.border_subtitle = "⏎ choose · Del delete · Esc close"
            self.query_one("#filter").focus()
            self.call_after_refresh(self._show_rows)
        elif self.mode == "fetch":
            picker.border_subtitle = "Esc stop"
            self.query_one("#stop").focus()
            self._note("")

    # Fetching

    def _fetch(self, name: str, title: str) -> None:
        self.query_one("#fetch-title", Static).update(f"Fetching {clean_line(title)}")
        self.query_one("#fetch-line", Static).update("…")
        self.query_one("#fetch-news", Static).update("")
        self.query_one(ProgressBar).update(total=None)
        self._pace = Pace()
        self._news.clear()
        store = self._store
        self._download = Download(name, lambda progress: store.fetch(name, progress), self.post_message)
        self.mode = "fetch"
        self._download.begin()

    def on_download_came(self, message: DownloadCame) -> None:
        if message.download is self._download:
            self.query_one(ProgressBar).update(total=message.total, progress=message.done)
            self.query_one("#fetch-line", Static).update(self._pace.line(message.done, message.total))

    def on_download_said(self, message: DownloadSaid) -> None:
        if message.download is self._download:
            self._news.append(_indented(message.text))
            self.query_one("#fetch-news", Static).update("\n".join(self._news))

    def on_download_ended(self, message: DownloadEnded) -> None:
        if message.download is not self._download:
            return
        self._download = None
        if message.path is not None:
            self.dismiss(Choice(message.download.name, message.path))
            return
        self.mode = "list"
        self._note(message.problem, problem=True)

    # Deleting

    @on(FilterInput.Delete)
    @on(Button.Pressed, "#delete")
    def _delete(self) -> None:
        row = self._highlighted
        if row is not None and row.path is not None:
            self._in_background(self._ask_to_delete(row))

    async def _ask_to_delete(self, row: ModelRow) -> None:
        if row.name == self._current:
            self._note(f"{row.name} is in use.", problem=True)
            return
        files = await self._ask_store(lambda: self._store.files_of(row.name))
        if files is None:
            return
        place = files[-1].parent
        shared = " Other programs may use it there too." if "snapshots" in place.parts else ""
        question = f"Delete {row.name} ({row.size_shown})?\n  {place}\n\n{shared.strip()}".rstrip()
        self._ask(question, "Delete", "Keep", lambda: self._in_background(self._remove(row)), careful=True)

    async def _remove(self, row: ModelRow) -> None:
        freed = await self._ask_store(lambda: self._store.remove(row.name))
        if freed is not None:
            self._note(f"{row.name} is deleted: {size_text(freed)} freed.")
        await self._refresh()

    # Both

    def _note(self, text: str, *, problem: bool = False) -> None:
        note = self.query_one("#note", Static)
        note.set_class(problem, "problem")
        note.update(clean_line(text))
        note.display = bool(text)

    async def _ask_store(self, question: Callable[[], T]) -> T | None:
        """Its answer, from a thread; what it raises stands in the note."""
        try:
            return await asyncio.to_thread(question)
        except (WgllmError, OSError) as error:
            self._note(str(error), problem=True)
            return None

    def _in_background(self, work: Awaitable[Any]) -> None:
        self.run_worker(work)


def _indented(line: str) -> str:
    """A line without harm, with the blanks at its beginning."""
    return " " * (len(line) - len(line.lstrip(" "))) + clean_line(line)
