"""Presets of settings: to load, to save under a name, to delete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from wgllm.errors import WgllmError
from wgllm.tui.lists import ClickButton, FilterInput, Models
from wgllm.tui.settings_values import PresetLike, PresetStore, Settings
from wgllm.tui.text import clean_line

T = TypeVar("T")


class PresetPicker(ModalScreen["PresetLike | None"]):
    """Dismisses with the preset to load. Saves ``settings``; None: they have faults and can't be saved."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back"),
        Binding("ctrl+s", "save", "Save", priority=True),
        Binding("up", "move('cursor_up')", show=False),
        Binding("down", "move('cursor_down')", show=False),
    ]
    DEFAULT_CSS = """
    PresetPicker { align: center middle; }
    PresetPicker #preset-box {
        width: 100%; max-width: 60; height: auto; max-height: 100%;
        border: round $primary; background: $surface; padding: 0 1;
    }
    PresetPicker FilterInput { background: $boost; margin-bottom: 1; }
    PresetPicker Models { height: auto; max-height: 12; min-height: 1; background: $surface; }
    PresetPicker Models > .option-list--option-highlighted {
        background: $block-cursor-background; color: $block-cursor-foreground;
    }
    PresetPicker #preset-note { height: auto; color: $text-warning; }
    PresetPicker .buttons { height: 1; margin-top: 1; }
    PresetPicker .buttons Button { margin-right: 1; min-width: 0; width: auto; }
    """

    def __init__(self, store: PresetStore, settings: Settings | None) -> None:
        super().__init__()
        self._store = store
        self._settings = settings
        self._presets: list[PresetLike] = []
        self._shown: list[PresetLike] = []
        self._sure: tuple[str, str] | None = None
        """What is done when it is asked for once more: save or delete, and which name."""

    def compose(self) -> ComposeResult:
        with Vertical(id="preset-box") as box:
            box.border_title = "Presets"
            box.border_subtitle = "⏎ load · Ctrl+S save · Del delete"
            yield FilterInput(placeholder="a name, to find or to save under", compact=True, id="preset-name")
            yield Models(markup=False, compact=True)
            yield Static("", id="preset-note", markup=False)
            with Horizontal(classes="buttons"):
                yield ClickButton("Load", id="load", variant="primary", compact=True)
                yield ClickButton("Save", id="save", compact=True)
                yield ClickButton("Delete", id="delete", compact=True)
                yield ClickButton("Back", id="back", compact=True)

    async def on_mount(self) -> None:
        self.run_worker(self._refresh())

    async def _refresh(self) -> None:
        presets = await self._ask(self._store.list)
        self._presets = list(presets or ())
        self._show()
        if presets is not None and not presets:
            self._note("There is none yet: type a name and press Ctrl+S.")

    @property
    def _typed(self) -> str:
        return " ".join(self.query_one("#preset-name", Input).value.split())

    @property
    def _highlighted(self) -> PresetLike | None:
        at = self.query_one(Models).highlighted
        return None if at is None else self._shown[at]

    @on(Input.Changed)
    def _filter(self) -> None:
        self._sure = None
        self._note("")
        self._show()

    def _show(self) -> None:
        typed = self._typed.casefold()
        self._shown = [p for p in self._presets if typed in p.name.casefold()]
        models = self.query_one(Models)
        models.set_options([Option(clean_line(p.name)) for p in self._shown])
        models.highlighted = 0 if self._shown else None
        for name in ("load", "delete"):
            self.query_one(f"#{name}", Button).disabled = not self._shown

    def action_move(self, action: str) -> None:
        self._sure = None
        getattr(self.query_one(Models), f"action_{action}")()

    @on(Button.Pressed, "#load")
    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _load(self) -> None:
        if self._highlighted is not None:
            self.dismiss(self._highlighted)

    @on(Button.Pressed, "#back")
    def _back(self) -> None:
        self.dismiss(None)

    @on(Button.Pressed, "#save")
    def action_save(self) -> None:
        name, settings = self._typed, self._settings
        if settings is None:
            self._note("A value in the panel makes no sense yet: mend it first.")
        elif not name:
            self._note("Type a name to save under.")
        elif any(p.name == name for p in self._presets) and self._sure != ("save", name):
            self._sure = ("save", name)
            self._note(f"There is a {name} already. Save once more to replace it.")
        else:
            self.run_worker(self._save(name, settings))

    async def _save(self, name: str, settings: Settings) -> None:
        def save() -> bool:
            self._store.save(name, settings.to_json(), settings.system_prompt)
            return True

        self._sure = None
        if await self._ask(save):
            await self._refresh()
            self._note(f"Saved as {name}.")

    @on(FilterInput.Delete)
    @on(Button.Pressed, "#delete")
    def _delete(self) -> None:
        preset = self._highlighted
        if preset is None:
            return
        if self._sure != ("delete", preset.name):
            self._sure = ("delete", preset.name)
            self._note(f"Delete {preset.name}? Delete once more does it.")
        else:
            self.run_worker(self._remove(preset.name))

    async def _remove(self, name: str) -> None:
        def delete() -> bool:
            self._store.delete(name)
            return True

        self._sure = None
        if await self._ask(delete):
            await self._refresh()
            self._note(f"{name} is deleted.")

    async def _ask(self, question: Callable[[], T]) -> T | None:
        """The store's answer, from a thread; what it raises stands in the note."""
        try:
            return await asyncio.to_thread(question)
        except WgllmError as error:
            self._note(str(error))
            return None

    def _note(self, text: str) -> None:
        self.query_one("#preset-note", Static).update(clean_line(text))
