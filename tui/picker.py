"""The model picker: installed models and the catalogue's in one list, names that are typed, deleting."""

from __future__ import annotations

import asyncio
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
from textual.widgets import Button, Input, Static
from textual.widgets.option_list import Option

from wgllm.catalog import Entry
from wgllm.errors import WgllmError
from wgllm.hub import HubName
from wgllm.hub_progress import size_text
from wgllm.tui.download import Downloads
from wgllm.tui.lists import ClickButton, FilterInput, Models
from wgllm.tui.missing import missing_target
from wgllm.tui.offer import Offer
from wgllm.tui.picker_models import HubStore, ModelRow, ModelStore, is_source, model_rows, paths_like
from wgllm.tui.text import clean_line

T = TypeVar("T")
_TYPED, _PATH = "typed", "path "
_OFFLINE = "--offline lets nothing be fetched: leave it out, or type the path of a GGUF file."


@dataclass(frozen=True)
class Choice:
    """The model that was chosen; it is here."""

    name: str
    """What ``wgllm.hub.resolve`` takes: a name of the catalogue, a Hugging Face name or a path."""
    path: Path


class ModelPicker(ModalScreen["Choice | None"]):
    """Dismisses with the model that was chosen, fetched if need be; None when none was.

    With nothing installed the catalogue's default is highlighted. ``memory`` is what a model may take
    in bytes; models whose files are larger are marked. ``current`` is the name of the model in use, ``in_use`` its
    file, which is not deleted. ``offline``: nothing is fetched.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("up", "move('cursor_up')", show=False),
        Binding("down", "move('cursor_down')", show=False),
        Binding("pageup", "move('page_up')", show=False),
        Binding("pagedown", "move('page_down')", show=False),
        Binding("y", "confirm", show=False),
        Binding("n", "back", show=False),
        Binding("tab", "complete", show=False, priority=True),
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
    ModelPicker #ask { height: auto; }
    ModelPicker #detail { height: auto; max-height: 3; color: $text-muted; margin-top: 1; }
    ModelPicker #note { height: auto; max-height: 4; color: $text-muted; }
    ModelPicker #note.problem { color: $text-error; }
    ModelPicker .buttons { height: auto; width: 100%; margin-top: 1; }
    ModelPicker .buttons Button { margin-right: 1; min-width: 0; width: auto; }
    """

    mode: reactive[str] = reactive("list", init=False)
    """``list`` or ``ask`` (whether to delete)."""

    def __init__(
        self,
        store: ModelStore | None = None,
        downloads: Downloads | None = None,
        *,
        memory: int | None = None,
        current: str | None = None,
        in_use: Path | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__()
        self._store: ModelStore = HubStore() if store is None else store
        self._downloads = downloads or Downloads(self._store.fetch)
        self._memory, self._current, self._in_use = memory, current, in_use
        self._offline = offline
        self._rows: list[ModelRow] = []
        self._shown: list[ModelRow] = []
        self._paths: list[str] = []
        self._asked: Callable[[], None] | None = None

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
                    yield Button("Yes", id="yes", variant="error", compact=True)
                    yield Button("No", id="no", compact=True)
            yield Static("", id="note", markup=False)
            with Horizontal(classes="buttons", id="list-buttons"):
                yield ClickButton("Choose", id="choose", variant="primary", compact=True)
                yield ClickButton("Delete…", id="delete", compact=True)
                yield ClickButton("Close", id="close", compact=True)

    def on_mount(self) -> None:
        self._note("")
        self.watch_mode()
        self._in_background(self._refresh(first=True))

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._show_rows)

    # The list

    async def _refresh(self, *, first: bool = False) -> None:
        installed = await self._ask_store(self._store.installed)
        if installed is None:
            installed = []
        catalog = self._store.catalog()
        fetching = {download.name for download in self._downloads.all_running()}
        self._rows = model_rows(catalog, installed, self._memory, fetching)
        self._show_rows()
        if first:
            names = [row.name for row in self._shown]
            if not installed and catalog.default.name in names:
                self._models.highlighted = names.index(catalog.default.name)
            elif names:
                self._models.highlighted = names.index(self._current) if self._current in names else 0
            if not installed and not self.query_one("#note").has_class("problem"):
                if self._offline:
                    self._note(f"No model is here, and {_OFFLINE}", problem=True)
                else:
                    self._note("No model is here yet. The one that is marked is small and answers at once.")

    @property
    def _models(self) -> Models:
        return self.query_one(Models)

    @property
    def _typed(self) -> str:
        return self.query_one("#filter", Input).value.strip()

    @property
    def _highlighted(self) -> ModelRow | None:
        """None: what was typed, a path, or nothing."""
        option = self._models.highlighted_option
        found = option is not None and (option.id or "").isdecimal()
        return self._shown[int(option.id or 0)] if option is not None and found else None

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
            options = [
                Option(clean_line(f"{verb} {typed}"), id=_TYPED),
                *(Option(f"  {path}", id=_PATH + path) for path in self._paths if path != typed),
                *options,
            ]
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
            text = "A GGUF file or a folder, or a repository on Hugging Face. Tab completes a path."
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
        typed = self._typed
        if not is_source(typed) or typed.startswith("hf:"):
            self._paths = []
        else:
            self.run_worker(self._find_paths(typed), group="paths", exclusive=True)
        self._show_rows()

    async def _find_paths(self, typed: str) -> None:
        found = await asyncio.to_thread(paths_like, typed)
        if typed == self._typed:
            self._paths = found
            self._show_rows()

    def action_complete(self) -> None:
        """Goes on with the path that is highlighted, else the first one."""
        if self.mode != "list":
            self.focus_next()
            return
        option = self._models.highlighted_option
        chosen = (option.id or "") if option is not None else ""
        if chosen.startswith(_PATH) or self._paths:
            self._take_path(chosen.removeprefix(_PATH) if chosen.startswith(_PATH) else self._paths[0])

    def _take_path(self, path: str) -> None:
        field = self.query_one("#filter", Input)
        field.value = path
        field.cursor_position = len(path)

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
        if option is not None and (option.id or "").startswith(_PATH):
            path = (option.id or "").removeprefix(_PATH)
            if path.endswith("/"):
                self._take_path(path)
            else:
                self._in_background(self._take_typed(path))
        elif row is None:
            if self._typed and self._rows:
                self._in_background(self._take_typed(self._typed))
        elif row.path is not None and row.runs:
            self.dismiss(Choice(row.name, row.path))
        elif row.entry is not None:
            self._offer(row.entry)

    async def _take_typed(self, typed: str) -> None:
        meant = await self._ask_store(lambda: self._store.identify(typed))
        if isinstance(meant, Path):
            self.dismiss(Choice(typed, meant))
        elif meant is not None:
            here = await self._ask_store(lambda: self._store.is_here(meant))
            files = await self._ask_store(lambda: self._store.files_of(typed)) if here else None
            if files:
                self.dismiss(Choice(typed, files[-1]))
            else:
                self._offer(meant)

    def _offer(self, target: Entry | HubName) -> None:
        if isinstance(target, Entry) and not target.runs:
            family = target.architecture
            self._note(
                f"This version can't run {target.name}: its family, {family}, is to come.", problem=True
            )
            return
        what = missing_target(target, self._store)
        if self._offline:
            self._note(f"{what.name} is not here, and {_OFFLINE}", problem=True)
            return
        hint = ""
        if self._memory is not None and what.size is not None and what.size >= self._memory:
            hint = f"Its file is larger than the memory there is ({size_text(self._memory)})."
        offer = Offer(what, self._store, self._downloads, others=False, hint=hint)
        self.app.push_screen(offer, lambda answer: self._offered(offer, answer))

    def _offered(self, offer: Offer, answer: str | None) -> None:
        if answer == "here" and offer.download is not None and offer.download.path is not None:
            self.dismiss(Choice(offer.what.name, offer.download.path))
        elif answer == "behind":
            self.dismiss(None)
        elif answer == "stopped":
            self._note("Stopped. What has come is kept; choosing it again goes on from there.")

    def _ask(self, question: str, yes: str, no: str, then: Callable[[], None]) -> None:
        self._asked = then
        self.query_one("#question", Static).update("\n".join(map(_indented, question.split("\n"))))
        self.query_one("#yes", Button).label = yes
        self.query_one("#no", Button).label = no
        self.mode = "ask"
        self.query_one("#picker").border_subtitle = f"y {yes.lower()} · Esc {no.lower()}"
        self.query_one("#no").focus()

    @on(Button.Pressed, "#yes")
    def action_confirm(self) -> None:
        if self.mode == "ask" and self._asked is not None:
            then, self._asked = self._asked, None
            self.mode = "list"
            then()

    @on(Button.Pressed, "#no")
    @on(Button.Pressed, "#close")
    def action_back(self) -> None:
        if self.mode == "list":
            self.dismiss(None)
        else:
            self.mode = "list"

    def watch_mode(self) -> None:
        for name in ("list", "ask"):
            self.query_one(f"#{name}").display = self.mode == name
        self.query_one("#list-buttons").display = self.mode == "list"
        picker = self.query_one("#picker")
        picker.set_class(self.mode != "list", "small")
        if self.mode == "list":
            picker.border_subtitle = "⏎ choose · Del delete · Esc close"
            self.query_one("#filter").focus()
            self.call_after_refresh(self._show_rows)

    # Deleting

    @on(FilterInput.Delete)
    @on(Button.Pressed, "#delete")
    def _delete(self) -> None:
        row = self._highlighted
        if row is not None and row.path is not None:
            self._in_background(self._ask_to_delete(row))

    async def _ask_to_delete(self, row: ModelRow) -> None:
        if row.name == self._current or (self._in_use is not None and row.path == self._in_use):
            self._note(f"{row.name} is in use.", problem=True)
            return
        files = await self._ask_store(lambda: self._store.files_of(row.name))
        if files is None:
            return
        place = files[-1].parent
        shared = " Other programs may use it there too." if "snapshots" in place.parts else ""
        question = f"Delete {row.name} ({row.size_shown})?\n  {place}\n\n{shared.strip()}".rstrip()
        self._ask(question, "Delete", "Keep", lambda: self._in_background(self._remove(row)))

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
