"""The settings panel: values, faults, resets, presets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.tui import panels
from tests.tui.panels import (
    HOSTILE,
    NARROW,
    USUAL,
    Panel,
    Steps,
    assert_harmless,
    click,
    shown,
    text_of,
    until,
)
from wgllm.errors import SessionStoreError, UsageError
from wgllm.sampling import SamplingParams
from wgllm.tui.presets import PresetPicker
from wgllm.tui.settings import SettingRow, SettingsPanel, ValueInput
from wgllm.tui.settings_values import FIELDS, PresetStore, Settings

sizes = pytest.mark.parametrize("size", [USUAL, NARROW], ids=["80x24", "40x24"])


def play(panel: SettingsPanel, steps: Steps, size: tuple[int, int] = USUAL) -> list[Any]:
    return panels.play(panel, lambda: panel.is_mounted and panel.query(ValueInput), steps, size)


def row(panel: SettingsPanel, name: str) -> SettingRow:
    return panel._rows[name]


def put(panel: SettingsPanel, name: str, text: str) -> None:
    row(panel, name).input.value = text


def focus(panel: SettingsPanel, name: str) -> None:
    row(panel, name).input.focus()


# The panel


def test_every_field_of_the_samplers_is_there_with_help_range_and_default() -> None:
    assert set(FIELDS) == {f.name for f in fields(SamplingParams)} | {"max_tokens", "ctx_size"}

    async def steps(pilot: Pilot[None], app: Panel) -> None:
        for name, field in FIELDS.items():
            focus(panel, name)
            await until(pilot, lambda name=name: panel.focused is row(panel, name).input)
            text = text_of(app, "#help")
            assert field.help in text and row(panel, name).default_shown in text, name
            assert (field.limits() in text) and bool(field.limits()) == bool(field.step), name
            assert row(panel, name).input.region.height == 1 and not row(panel, name).changed
            assert app.screen.region.contains_region(row(panel, name).input.region), name

    panel = SettingsPanel(Settings())
    play(panel, steps, NARROW)
    assert FIELDS["top_p"].limits() == "number, 0 or more"
    assert FIELDS["min_p"].limits() == "0 to 1"
    assert FIELDS["top_k"].limits() == "any whole number"


@sizes
def test_by_keyboard_alone(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press(*"Be", "enter", *"brief.", "tab")
        assert panel.focused is row(panel, "max_tokens").input
        await pilot.press("up", "up", "enter", *"8192", "tab", "7")
        assert row(panel, "max_tokens").input.value == "768" and panel.focused is row(panel, "seed").input
        await pilot.press("pagedown", "down", "down")
        assert row(panel, "temperature").input.value == "0.7"
        await pilot.press("pagedown", "pageup")
        assert panel.focused is row(panel, "temperature").input
        assert "● temperature" in shown(app) and "○" not in shown(app)
        await pilot.press("ctrl+s")

    panel = SettingsPanel(Settings(SamplingParams(top_k=3)))
    sampling = SamplingParams(temperature=0.7, top_k=3, seed=7)
    assert play(panel, steps, size) == [Settings(sampling, "Be\nbrief.", 768, 8192)]


@sizes
def test_a_value_that_makes_no_sense_is_marked_in_its_place(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        focus(panel, "temperature")
        await pilot.press(*"hot")
        assert row(panel, "temperature").problem == "must be a number"
        await until(pilot, lambda: "must be a number" in shown(app))
        lines = shown(app).split("\n")
        at = next(i for i, line in enumerate(lines) if "hot" in line)
        assert "! temperature" in lines[at] and "must be a number" in lines[at + 1]
        put(panel, "min_p", "2")
        await pilot.press("ctrl+s")  # the focus goes to the first fault
        assert panel.focused is row(panel, "temperature").input
        assert "temperature must be a number" in text_of(app, "#note") and not app.answers
        await pilot.press("ctrl+a", "ctrl+k", "1", "ctrl+s")
        assert panel.focused is row(panel, "min_p").input
        assert "must lie between 0 and 1" in text_of(app, "#note")
        await pilot.press("ctrl+r", "ctrl+s")

    panel = SettingsPanel(Settings())
    assert play(panel, steps, size) == [Settings(SamplingParams(temperature=1.0))]


def test_one_value_is_reset_or_all_are() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        assert row(panel, "temperature").changed and not row(panel, "top_k").changed
        assert "default 0.5" in str(row(panel, "temperature").query_one(".arrows", Static).content)
        focus(panel, "temperature")
        await pilot.press("ctrl+r")
        assert row(panel, "temperature").input.value == "0.5" and not row(panel, "temperature").changed
        focus(panel, "seed")
        await pilot.press("up")
        put(panel, "dry_base", "2")
        await click(pilot, "#reset-all")
        await until(pilot, lambda: not any(r.changed for r in panel._rows.values()))
        assert panel._prompt.text == "model's"
        await click(pilot, "#apply")

    defaults = Settings(SamplingParams(temperature=0.5, top_k=64), "model's")
    panel = SettingsPanel(Settings(SamplingParams(top_k=64), "mine", 5, 6), defaults=defaults)
    assert play(panel, steps) == [defaults]


@sizes
def test_by_mouse(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        focus(panel, "temperature")
        await pilot.pause()
        arrows = row(panel, "temperature").query_one(".arrows")
        await pilot.click(arrows, offset=(1, 0))
        await pilot.click(arrows, offset=(1, 0))
        assert row(panel, "temperature").input.value == "0.7"
        await pilot.click(arrows, offset=(3, 0))
        row(panel, "dynatemp_range").scroll_visible(animate=False)
        await pilot.pause()
        await pilot.click(row(panel, "dynatemp_range").input)
        assert panel.focused is row(panel, "dynatemp_range").input
        for button in ("#apply", "#reset-all", "#cancel"):
            region = panel.query_one(button).region
            assert app.screen.region.contains_region(region) and region.width >= 7, button
        await click(pilot, "#apply")

    panel = SettingsPanel(Settings())
    assert play(panel, steps, size) == [Settings(SamplingParams(temperature=0.75))]


def test_leaving_asks_once_when_something_was_changed() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("x", "escape")
        assert "Nothing is applied yet" in text_of(app, "#note") and not app.answers
        await pilot.press("escape")

    assert play(SettingsPanel(Settings()), steps) == [None]

    async def cancelled(pilot: Pilot[None], app: Panel) -> None:
        await click(pilot, "#cancel")

    assert play(SettingsPanel(Settings()), cancelled) == [None]


def test_a_hostile_prompt_is_shown_harmless_and_kept_as_it_is() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        assert_harmless(shown(app))
        await pilot.press("ctrl+s")

    settings = Settings(system_prompt=HOSTILE)
    assert play(SettingsPanel(settings), steps) == [settings]


# What is typed


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", " 1e0 ", 1.0),
        ("top_k", "-1", -1),
        ("seed", "", None),
        ("seed", "18446744073709551615", 2**64 - 1),
        ("max_tokens", "", None),
        ("ctx_size", "4096", 4096),
        ("samplers", "top-k; temp", ("top_k", "temperature")),
        ("samplers", "", ()),
        ("dry_sequence_breakers", r"\n : \s\\n", ("\n", ":", " \\n")),
        ("dry_sequence_breakers", "", ()),
        ("logit_bias", "15=+1.5 42=-inf", {15: 1.5, 42: float("-inf")}),
    ],
)
def test_what_is_typed_is_read(name: str, text: str, value: Any) -> None:
    field = FIELDS[name]
    assert field.parse(text) == value
    settings = Settings(SamplingParams(**{name: value})) if name not in ("max_tokens", "ctx_size") else None
    if settings is not None:
        assert field.parse(field.text_of(settings)) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("temperature", "nan", "must lie between"),
        ("temperature", "", "must be a number"),
        ("top_k", "1.5", "must be a whole number"),
        ("seed", str(2**64), "at most 64 bits"),
        ("max_tokens", "0", "must lie between 1 and 2,147,483,647"),
        ("ctx_size", "x", "must be a whole number"),
        ("mirostat", "3", "must lie between 0 and 2"),
        ("samplers", "top_k;heat", "there is no sampler 'heat'"),
        ("logit_bias", "a=1", "15=+1.5"),
        ("logit_bias", "1=x", "must be a number"),
        ("logit_bias", "1=inf", "-1e6 and 1e6"),
    ],
)
def test_what_makes_no_sense_is_said(name: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("+", r"\+").replace("(", r"\(")):
        FIELDS[name].parse(text)


def test_arrows_stay_in_the_range() -> None:
    assert FIELDS["min_p"].stepped("0.99", 1) == FIELDS["min_p"].stepped("1", 1) == "1"
    assert FIELDS["min_p"].stepped("0.3", -1) == "0.29"  # 0.3 - 0.01 is 0.29 here
    assert FIELDS["mirostat"].stepped("0", -1) == "0"
    assert FIELDS["temperature"].stepped("odd", 1) == "odd"
    assert [FIELDS["max_tokens"].stepped(t, -1) for t in ("", "256", "512")] == ["", "", "256"]
    assert FIELDS["ctx_size"].stepped("", 1) == "4096"


# Settings as JSON, presets


def test_settings_go_through_json_and_back() -> None:
    sampling = SamplingParams(
        0.3, 5, seed=2**64 - 1, logit_bias={3: -1.5, 4: float("-inf")}, samplers="top_k;temp"
    )
    settings = Settings(sampling, "prompt", 10, None)
    text = json.dumps(settings.to_json(), allow_nan=False)
    assert Settings.from_json(json.loads(text), "prompt") == settings
    assert Settings.from_json({"temperature": 0.1, "from a later version": 1}).sampling.temperature == 0.1


@pytest.mark.parametrize(
    "values", [{"temperature": "hot"}, {"logit_bias": [1]}, {"logit_bias": 3}, {"max_tokens": 0}, {"ctx_size": True},
               {"samplers": 3}, {"dry_sequence_breakers": [1, None]}]
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Settings.from_json(values)


class Named(NamedTuple):
    name: str
    settings: Mapping[str, Any]
    system_prompt: str


class Shelf:
    """Presets in memory."""

    def __init__(self, *presets: Named) -> None:
        self.presets = {p.name: p for p in presets}
        self.error: SessionStoreError | None = None

    def list(self) -> list[Named]:
        if self.error:
            raise self.error
        return sorted(self.presets.values())

    def save(self, name: str, settings: Mapping[str, Any], system_prompt: str = "") -> object:
        json.dumps(dict(settings), allow_nan=False)
        self.presets[name] = Named(name, settings, system_prompt)
        return None

    def delete(self, name: str) -> None:
        del self.presets[name]


async def open_presets(pilot: Pilot[None], app: Panel) -> PresetPicker:
    await pilot.press("ctrl+o")
    await until(pilot, lambda: isinstance(app.screen, PresetPicker))
    picker = app.screen
    assert isinstance(picker, PresetPicker)
    await until(pilot, lambda: picker._presets or text_of(app, "#preset-note"))
    return picker


@sizes
def test_a_preset_is_loaded(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await open_presets(pilot, app)
        assert_harmless(shown(app))
        await pilot.press(*"wa", "enter")
        await until(pilot, lambda: app.screen is panel)
        assert row(panel, "temperature").input.value == "1.2" and row(panel, "top_k").input.value == "40"
        assert "warm is loaded" in text_of(app, "#note")
        await pilot.press("ctrl+s")

    shelf = Shelf(Named("warm", {"temperature": 1.2}, "Sing."), Named("cold", {}, ""), Named(HOSTILE, {}, ""))
    panel = SettingsPanel(Settings(SamplingParams(top_k=3)), presets=shelf)
    assert play(panel, steps, size) == [Settings(SamplingParams(temperature=1.2), "Sing.")]


def test_a_preset_is_saved_replaced_and_deleted() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await open_presets(pilot, app)
        assert "There is none yet" in text_of(app, "#preset-note")
        await pilot.press("ctrl+s")
        assert "Type a name" in text_of(app, "#preset-note")
        await pilot.press(*"my", "ctrl+s")
        await until(pilot, lambda: "Saved as my" in text_of(app, "#preset-note"))
        await pilot.press("escape")
        put(panel, "temperature", "1.5")
        await pilot.pause()
        await open_presets(pilot, app)
        await pilot.press(*"my")
        await click(pilot, "#save")
        assert (
            "already" in text_of(app, "#preset-note") and shelf.presets["my"].settings["temperature"] == 0.25
        )
        await click(pilot, "#save")
        await until(pilot, lambda: "Saved as my" in text_of(app, "#preset-note"))
        assert shelf.presets["my"].settings["temperature"] == 1.5
        await pilot.press("delete")
        assert "Delete my?" in text_of(app, "#preset-note") and "my" in shelf.presets
        await pilot.press("delete")
        await until(pilot, lambda: "my is deleted" in text_of(app, "#preset-note"))
        assert not shelf.presets

    shelf = Shelf()
    panel = SettingsPanel(Settings(SamplingParams(temperature=0.25)), presets=shelf)
    play(panel, steps)


def test_presets_that_fail_say_why() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        put(panel, "top_p", "x")
        await pilot.pause()
        await open_presets(pilot, app)
        await pilot.press("a", "ctrl+s")
        assert "makes no sense yet" in text_of(app, "#preset-note")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is panel)
        assert "bad: temperature is 'hot'" in text_of(app, "#note")
        shelf.error = SessionStoreError("/p", "locked")
        await pilot.press("ctrl+o")
        await until(
            pilot, lambda: isinstance(app.screen, PresetPicker) and "locked" in text_of(app, "#preset-note")
        )

    shelf = Shelf(Named("bad", {"temperature": "hot"}, ""), Named("good", {}, ""))
    shelf.presets.pop("good")
    panel = SettingsPanel(Settings(), presets=shelf)
    play(panel, steps)


def test_the_store_of_conversations_is_such_a_store() -> None:
    from wgllm.sessions_shelf import Presets

    stores: list[PresetStore] = []
    stores.append(Presets.__new__(Presets))  # mypy holds the two together
    assert all(hasattr(stores[0], name) for name in ("list", "save", "delete"))
