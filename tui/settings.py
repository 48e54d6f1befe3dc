"""The settings panel: every sampler, the system prompt, sizes, and presets of them."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Click, DescendantFocus, Key
from textual.message import Message
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static, TextArea

from wgllm.errors import UsageError
from wgllm.tui.presets import PresetPicker
from wgllm.tui.settings_values import FIELDS, GROUPS, Field, PresetLike, PresetStore, Settings, with_values
from wgllm.tui.text import clean, clean_line

__all__ = ["PresetStore", "Settings", "SettingsPanel"]

_PROMPT_HELP = "What the model is told before the conversation: who it is and how it should answer."


class ValueInput(Input):
    """One line; arrows change a number, Enter goes on."""

    def __init__(self, field: Field, text: str) -> None:
        super().__init__(
            text, placeholder=field.empty, id=f"value-{field.name}", compact=True, select_on_focus=True
        )
        self.field = field

    def on_key(self, event: Key) -> None:
        if event.key in ("up", "down"):
            event.stop()
            event.prevent_default()
            if self.field.step:
                self.step(1 if event.key == "up" else -1)
            elif event.key == "up":
                self.screen.focus_previous()
            else:
                self.screen.focus_next()

    def step(self, by: int) -> None:
        self.value = self.field.stepped(self.value, by)
        self.cursor_position = len(self.value)


class Arrows(Static):
    """For the mouse: less and more. Beside them stands the default."""

    def __init__(self, value: ValueInput) -> None:
        super().__init__("", markup=False, classes="arrows")
        self._value = value

    def show(self, text: str) -> None:
        self.update(f" ‹ › {text}")

    def on_click(self, event: Click) -> None:
        event.stop()
        self._value.focus()
        if event.x <= 4:
            self._value.step(-1 if event.x < 3 else 1)


class SettingRow(Vertical):
    """A label, its value, the default where it differs, and below what is wrong with it."""

    class Changed(Message):
        pass

    def __init__(self, field: Field, value: Settings, default: Settings) -> None:
        super().__init__(classes="row")
        self.field = field
        self._default = field.text_of(default)
        self.input = ValueInput(field, field.text_of(value))
        self._label = Static("", classes="label", markup=False)
        self._arrows = Arrows(self.input) if field.step else None
        self._problem: Static | None = None
        self.problem = ""

    def compose(self) -> ComposeResult:
        with Horizontal(classes="line"):
            yield self._label
            yield self.input
            if self._arrows is not None:
                yield self._arrows

    async def on_mount(self) -> None:
        await self.check()

    @property
    def changed(self) -> bool:
        try:
            return bool(self.field.parse(self.input.value) != self.field.parse(self._default))
        except UsageError:
            return True

    @property
    def default_shown(self) -> str:
        return clean_line(self._default) or self.field.empty

    @on(Input.Changed)
    async def check(self) -> None:
        """Marks what stands there as changed or wrong."""
        try:
            self.field.parse(self.input.value)
            self.problem = ""
        except UsageError as error:
            self.problem = clean_line(str(error))
        changed = self.changed
        mark = ("! ", "$text-error") if self.problem else ("● ", "$warning") if changed else "  "
        self._label.update(Content.assemble(mark, (self.field.label, "bold" if changed else "")))
        if self._arrows is not None:
            self._arrows.show(f"default {self.default_shown}" if changed else "")
        if self.problem and self._problem is None:
            self._problem = Static("", classes="row-problem", markup=False)
            await self.mount(self._problem)
        if self._problem is not None:
            self._problem.update(self.problem)
            self._problem.display = bool(self.problem)
        if self.problem and self.input.has_focus:
            self.call_after_refresh(self.scroll_visible, animate=False)
        self.post_message(self.Changed())

    def reset(self) -> None:
        self.input.value = self._default

    def put(self, settings: Settings) -> None:
        self.input.value = self.field.text_of(settings)


class SettingsPanel(ModalScreen["Settings | None"]):
    """Dismisses with the settings, or None when they are to stay as they were.

    ``defaults`` are those of the model: what resets go back to, and beside which a value counts as changed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "apply", "Apply", priority=True),
        Binding("ctrl+r", "reset", "Reset", priority=True),
        Binding("ctrl+o", "presets", "Presets", priority=True),
        Binding("escape", "leave", "Leave", priority=True),
        Binding("pagedown", "group(1)", show=False, priority=True),
        Binding("pageup", "group(-1)", show=False, priority=True),
    ]
    DEFAULT_CSS = """
    SettingsPanel { align: center middle; }
    SettingsPanel #settings {
        width: 100%; max-width: 84; height: 100%; max-height: 44;
        border: round $primary; background: $surface; padding: 0 1;
    }
    SettingsPanel #values { height: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    SettingsPanel .group { height: auto; }
    SettingsPanel .heading { text-style: bold; color: $text-primary; margin-top: 1; }
    SettingsPanel #system-prompt { height: 5; border: none; padding: 0; background: $boost; }
    SettingsPanel .row { height: auto; }
    SettingsPanel .line { height: 1; }
    SettingsPanel .label { width: 22; }
    SettingsPanel .row ValueInput { width: 1fr; background: $boost; }
    SettingsPanel .row ValueInput:focus { background: $primary-muted; }
    SettingsPanel .arrows { width: 28; color: $text-muted; text-wrap: nowrap; }
    SettingsPanel .row-problem { color: $text-error; padding-left: 2; }
    SettingsPanel #help { height: 4; color: $text-muted; border-top: solid $foreground 20%; }
    SettingsPanel #note { height: auto; color: $text-warning; }
    SettingsPanel .buttons { height: 1; }
    SettingsPanel .buttons Button { margin-right: 1; min-width: 0; width: auto; }
    SettingsPanel.narrow .arrows { width: 4; }
    SettingsPanel.narrow #help { height: 6; }
    SettingsPanel.narrow .buttons Button { margin-right: 0; }
    """
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "narrow"), (64, "wide")]  # noqa: RUF012

    def __init__(
        self, settings: Settings, *, defaults: Settings | None = None, presets: PresetStore | None = None
    ) -> None:
        super().__init__()
        self._settings = settings
        self._defaults = Settings() if defaults is None else defaults
        self._presets = presets
        self._rows: dict[str, SettingRow] = {}
        self._warned = False
        self._noted_beside: Widget | None = None
        """What is about to have the focus without ending the note."""

    def compose(self) -> ComposeResult:
        self._rows = {name: SettingRow(f, self._settings, self._defaults) for name, f in FIELDS.items()}
        with Vertical(id="settings") as box:
            box.border_title = "Settings"
            box.border_subtitle = "Tab next · ↑↓ change · ^S apply"
            with VerticalScroll(id="values", can_focus=False):
                yield Label("System prompt", classes="heading")
                yield TextArea(
                    clean(self._settings.system_prompt),
                    id="system-prompt",
                    soft_wrap=True,
                    tab_behavior="focus",
                )
                for title, fields in GROUPS:
                    with Vertical(classes="group"):
                        yield Label(title, classes="heading", markup=False)
                        yield from (self._rows[field.name] for field in fields)
            yield Static("", id="help", markup=False)
            yield Static("", id="note", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Apply", id="apply", variant="primary", compact=True)
                if self._presets is not None:
                    yield Button("Presets", id="presets", compact=True)
                yield Button("Reset all", id="reset-all", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_mount(self) -> None:
        self._note("")
        self.query_one("#system-prompt").focus()

    # Values

    @property
    def _prompt(self) -> TextArea:
        return self.query_one("#system-prompt", TextArea)

    def _read(self) -> Settings | None:
        """What stands there; None, and the focus on the first fault, where something makes no sense."""
        values = {}
        for name, row in self._rows.items():
            if row.problem:
                self._noted_beside = row.input
                row.input.focus()
                self._note(f"{row.field.label} {row.problem}")
                return None
            values[name] = row.field.parse(row.input.value)
        prompt = self._prompt.text
        if prompt == clean(self._settings.system_prompt):
            prompt = self._settings.system_prompt
        return with_values(Settings(self._settings.sampling, prompt), values)

    @property
    def _touched(self) -> bool:
        rows = self._rows.values()
        return self._prompt.text != clean(self._settings.system_prompt) or any(
            row.input.value != row.field.text_of(self._settings) for row in rows
        )

    @on(Input.Submitted)
    def _next(self) -> None:
        self.focus_next()

    @on(SettingRow.Changed)
    def _value_changed(self) -> None:
        self._warned = False
        self._show_help(self.focused)

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        if event.widget is not self._noted_beside:
            self._note("")
        self._noted_beside = None
        self._show_help(event.widget)

    def _show_help(self, widget: Widget | None) -> None:
        text = ""
        if isinstance(widget, ValueInput):
            field = widget.field
            default = self._rows[field.name].default_shown
            text = " · ".join(part for part in (field.limits(), f"default {default}") if part)
            text = f"{field.help}\n{text}" + (" · Ctrl+R resets" if self._rows[field.name].changed else "")
        elif widget is self._prompt:
            text = _PROMPT_HELP
        self.query_one("#help", Static).update(text)

    def _note(self, text: str) -> None:
        note = self.query_one("#note", Static)
        note.update(clean_line(text))
        note.display = bool(text)

    # Keys and buttons

    @on(Button.Pressed, "#apply")
    def action_apply(self) -> None:
        settings = self._read()
        if settings is not None:
            self.dismiss(settings)

    @on(Button.Pressed, "#cancel")
    def _cancel(self) -> None:
        self.dismiss(None)

    def action_leave(self) -> None:
        if self._touched and not self._warned:
            self._warned = True
            self._note("Nothing is applied yet: Ctrl+S applies, Esc again leaves it as it was.")
        else:
            self.dismiss(None)

    def action_reset(self) -> None:
        if isinstance(self.focused, ValueInput):
            self._rows[self.focused.field.name].reset()
        elif self.focused is self._prompt:
            self._prompt.text = clean(self._defaults.system_prompt)

    @on(Button.Pressed, "#reset-all")
    def _reset_all(self) -> None:
        self._show(self._defaults)
        self._note("All values are back to their defaults.")

    def action_group(self, by: int) -> None:
        """To the first value of the next group, or of the one before."""
        firsts: list[Widget] = [self._prompt, *(self._rows[fields[0].name].input for _, fields in GROUPS)]
        chain = self.focus_chain
        at = chain.index(self.focused) if self.focused in chain else 0
        places = [chain.index(widget) for widget in firsts]
        if by > 0:
            target = next((place for place in places if place > at), places[-1])
        else:
            target = next((place for place in reversed(places) if place < at), places[0])
        chain[target].focus()

    def _show(self, settings: Settings) -> None:
        self._prompt.text = clean(settings.system_prompt)
        for row in self._rows.values():
            row.put(settings)

    @on(Button.Pressed, "#presets")
    def action_presets(self) -> None:
        if self._presets is not None:
            settings = None if any(row.problem for row in self._rows.values()) else self._read()
            self.app.push_screen(PresetPicker(self._presets, settings), self._take_preset)

    def _take_preset(self, preset: PresetLike | None) -> None:
        if preset is None:
            return
        self._noted_beside = self.focused  # which gets it back
        try:
            settings = Settings.from_json(preset.settings, preset.system_prompt)
        except UsageError as error:
            self._note(f"{preset.name}: {error}")
            return
        self._show(settings)
        self._note(f"{preset.name} is loaded; Ctrl+S applies it.")
