"""The model picker, over a store of a few lines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, ProgressBar

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
from wgllm.catalog import Catalog, Entry, HubEntry, load_catalog
from wgllm.errors import DownloadError, ModelNotFoundError
from wgllm.hub import HubName, Installed
from wgllm.hub_progress import Progress
from wgllm.tui.download import Pace, duration
from wgllm.tui.picker import Choice, ModelPicker
from wgllm.tui.picker_models import HubStore, is_source, model_rows

MB = 1_000_000


def entry(name: str, title: str, size: int | None, **changes: Any) -> HubEntry:
    facts: dict[str, Any] = {
        "aliases": (), "chat": True, "quant": "Q4_K_M", "licence": "Apache-2.0", "homepage": "https://x.org",
        "licence_url": "https://x.org/licence", "architecture": "llama", "runs": True, "file": None,
        "repo": f"org/{name.replace(':', '-')}",
    }  # fmt: skip
    return HubEntry(name=name, title=title, size=size, **facts | changes)


SMALL = entry("small", "Small 135M Instruct", 98 * MB)
LARGE = entry("large:8b", "Large 8B Instruct", 4920 * MB, licence="Large Community License")
LATER = entry("later", "Later 2B", None, runs=False, architecture="mamba")
CATALOG = Catalog((LARGE, SMALL, LATER), SMALL)


class Store:
    """Models that are here, and downloads that tests lead."""

    def __init__(self, *here: str) -> None:
        self.here = {name: Path("/models") / name for name in here}
        self.entries = {e.name: e for e in CATALOG}
        self.fetched: list[str] = []
        self.interrupted = threading.Event()
        self.go_on = threading.Event()
        self.answer: Callable[[], None] = threading.Event().is_set  # does nothing
        self.error: Exception | None = None

    def catalog(self) -> Catalog:
        return CATALOG

    def installed(self) -> list[Installed]:
        self.answer()
        return [Installed(n, self.entries.get(n), path, 98 * MB) for n, path in self.here.items()]

    def identify(self, name: str) -> Entry | HubName | Path:
        if name.startswith("hf:"):
            return HubName(name[3:], None)
        if name.startswith("/here/"):
            return Path(name)
        raise ModelNotFoundError(f"no such file: {name}")

    def folder(self, entry: Entry) -> Path:
        return Path("/models")

    def fetch(self, name: str, progress: Progress) -> Path:
        self.fetched.append(name)
        progress.message(f"Fetching {name}")
        progress.message("  licence: mit")
        progress.start(name, 100 * MB, 10 * MB)
        try:
            if self.error is not None:
                raise self.error
            while not self.go_on.wait(0.005):
                progress.update(25 * MB)
            progress.update(100 * MB)
        except KeyboardInterrupt:
            self.interrupted.set()
            raise
        finally:
            progress.finish()
        return Path("/models") / name

    def files_of(self, name: str) -> tuple[Path, ...]:
        return (Path("/cache/snapshots/abc") / name,)

    def remove(self, name: str) -> int:
        del self.here[name]
        return 98 * MB


async def typed(pilot: Pilot[None], app: Panel, text: str) -> None:
    """At once, since each key takes a tenth of a second."""
    app.screen.query_one("#filter", Input).value = text
    await pilot.pause()


def play(picker: ModelPicker, steps: Steps, size: tuple[int, int] = USUAL) -> list[Any]:
    """Once the list (or the first question) is there."""
    return panels.play(picker, lambda: picker._rows and picker._models.option_count, steps, size)


sizes = pytest.mark.parametrize("size", [USUAL, NARROW], ids=["80x24", "40x24"])


@sizes
def test_what_is_here_and_what_can_be_had_in_one_list(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        screen = shown(app)
        order = [screen.index(text) for text in ("● small", "○ large:8b", "○ later")]
        assert order == sorted(order)
        for text in ("135M", "Q4_K_M", "98 MB", "4.92 GB", "here", "too large", "can't run yet", "⏎ choose"):
            assert text in screen, text
        assert "licence Apache-2.0" in " ".join(text_of(app, "#detail").split())
        assert "/models/small" in text_of(app, "#detail")
        await pilot.press("down")
        assert "Large Community License" in text_of(app, "#detail")

    play(ModelPicker(Store("small"), memory=1000 * MB), steps, size)


@sizes
def test_typing_filters_and_enter_chooses(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press(*"Comm")
        assert [row.name for row in picker._shown] == ["large:8b"]
        await pilot.press("z")
        assert not picker._shown and "Nothing has these words" in text_of(app, "#detail")
        await pilot.press("enter", "ctrl+u")
        await typed(pilot, app, "INSTRUCT sma")
        assert [row.name for row in picker._shown] == ["small"]
        await pilot.press("enter")

    picker = ModelPicker(Store("small"))
    assert play(picker, steps, size) == [Choice("small", Path("/models/small"))]


@sizes
def test_a_model_that_is_not_here_is_fetched(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter")
        question = text_of(app, "#question")
        for text in ("Large 8B Instruct (large:8b)", "4.92 GB", "Large Community License", "place: /models"):
            assert text in question
        assert "larger than the memory" in question and store.fetched == []
        await pilot.press("enter")
        await until(pilot, lambda: "25 MB of 100 MB" in text_of(app, "#fetch-line"))
        await until(pilot, lambda: "/s" in text_of(app, "#fetch-line") or clock.tick())
        assert "left" in text_of(app, "#fetch-line") and "licence: mit" in text_of(app, "#fetch-news")
        assert "Fetching Large 8B" in shown(app)
        bar = picker.query_one(ProgressBar)
        assert (bar.total, bar.progress) == (100 * MB, 25 * MB)
        store.go_on.set()
        await until(pilot, lambda: app.answers)

    class Clock:
        """Makes the speed that of the last second, however long the test takes."""

        def tick(self) -> bool:
            picker._pace._seen.appendleft((picker._pace._seen[0][0] - 1.0, 10 * MB))
            return False

    clock, store = Clock(), Store("small")
    picker = ModelPicker(store, memory=1000 * MB)
    assert play(picker, steps, size) == [Choice("large:8b", Path("/models/large:8b"))]


@pytest.mark.parametrize("by_mouse", [False, True], ids=["keys", "mouse"])
def test_a_download_is_stopped_and_goes_on(by_mouse: bool) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter", "enter")
        await until(pilot, lambda: "25 MB" in text_of(app, "#fetch-line"))
        await (click(pilot, "#stop") if by_mouse else pilot.press("escape"))
        assert picker.mode == "list" and "What has come is kept" in text_of(app, "#note")
        await until(pilot, store.interrupted.is_set)
        assert not app.answers
        store.go_on.set()
        await pilot.press("enter", "enter")
        await until(pilot, lambda: app.answers)

    store = Store("small")
    picker = ModelPicker(store)
    assert play(picker, steps) == [Choice("large:8b", Path("/models/large:8b"))]
    assert store.fetched == ["large:8b", "large:8b"]


def test_leaving_stops_the_download() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter", "enter")
        await until(pilot, lambda: "25 MB" in text_of(app, "#fetch-line"))

    store = Store("small")
    play(ModelPicker(store), steps)
    assert store.interrupted.wait(5)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DownloadError(f"the connection broke at {HOSTILE}"), "the connection broke"),
        (ValueError("[/bold] odd"), "the download failed: ValueError: [/bold] odd"),
    ],
)
def test_errors_stand_in_place_in_one_line(error: Exception, says: str) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter", "enter")
        await until(pilot, lambda: picker.mode == "list" and text_of(app, "#note"))
        note = text_of(app, "#note")
        assert says in note and "\n" not in note
        assert_harmless(shown(app))
        await pilot.press("up", "enter")

    store = Store("small")
    store.error = error
    picker = ModelPicker(store)
    assert play(picker, steps) == [Choice("small", Path("/models/small"))]


@sizes
def test_a_path_or_a_repository_is_typed(size: tuple[int, int]) -> None:
    async def path(pilot: Pilot[None], app: Panel) -> None:
        await typed(pilot, app, "/nowhere/a.gguf")
        await pilot.press("enter")
        await until(pilot, lambda: "no such file: /nowhere/a.gguf" in text_of(app, "#note"))
        await typed(pilot, app, "/here/a.gguf")
        assert "Open /here/a.gguf" in shown(app)
        await pilot.press("enter")
        await until(pilot, lambda: app.answers)

    picker = ModelPicker(Store("small"))
    assert play(picker, path, size) == [Choice("/here/a.gguf", Path("/here/a.gguf"))]

    async def repository(pilot: Pilot[None], app: Panel) -> None:
        store.go_on.set()
        await typed(pilot, app, "hf:org/repo:Q8_0")
        assert "Use hf:org/repo:Q8_0" in shown(app)
        await pilot.press("enter")
        await until(pilot, lambda: app.answers)

    store = Store("small")
    assert play(ModelPicker(store), repository, size) == [
        Choice("hf:org/repo:Q8_0", Path("/models/hf:org/repo:Q8_0"))
    ]


@pytest.mark.parametrize("by_mouse", [False, True], ids=["keys", "mouse"])
def test_a_model_is_deleted_after_a_question(by_mouse: bool) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        for answer in ("no", "yes"):
            await (click(pilot, "#delete") if by_mouse else pilot.press("delete"))
            await until(pilot, lambda: picker.mode == "ask")
            question = text_of(app, "#question")
            assert "Delete small (98 MB)?" in question and "/cache/snapshots/abc" in question
            assert "Other programs" in question
            keys = {"no": "enter", "yes": "y"}  # what has the focus keeps it
            await (click(pilot, f"#{answer}") if by_mouse else pilot.press(keys[answer]))
            assert picker.mode == "list"
            assert "small" in store.here or answer == "yes"
        await until(pilot, lambda: "98 MB freed" in text_of(app, "#note"))
        assert "small" not in store.here and "○ small" in shown(app)
        await pilot.press(*"ab", "home", "delete")
        assert picker._typed == "b" and picker.mode == "list"

    store = Store("small")
    picker = ModelPicker(store)
    assert play(picker, steps) == []


def test_the_model_in_use_is_marked_and_kept() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        assert picker._highlighted is not None and picker._highlighted.name == "large:8b"
        await pilot.press("delete")
        await until(pilot, lambda: "large:8b is in use" in text_of(app, "#note"))
        assert picker.mode == "list"

    picker = ModelPicker(Store("small", "large:8b"), current="large:8b")
    play(picker, steps)


def test_what_cannot_run_is_refused_in_place() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press(*"mam", "enter")
        assert "mamba" in text_of(app, "#note") and picker.mode == "list"
        await pilot.press("escape")

    picker = ModelPicker(Store("small"))
    assert play(picker, steps) == [None]


def test_the_list_by_mouse() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.click("#models", offset=(5, 1))
        assert picker.mode == "ask" and "large:8b" in text_of(app, "#question")
        await click(pilot, "#no")
        await click(pilot, "#choose")
        assert picker.mode == "ask"
        await click(pilot, "#no")
        await pilot.click("#models", offset=(5, 0))

    picker = ModelPicker(Store("small"))
    assert play(picker, steps) == [Choice("small", Path("/models/small"))]


@sizes
def test_the_first_run_offers_the_default_model(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await until(pilot, lambda: picker.mode == "ask")
        screen = " ".join(shown(app).split())
        for text in (
            "There is no model here yet",
            "Small 135M",
            "98 MB",
            "Apache-2.0",
            "place: /models",
            "Fetch",
        ):
            assert text in screen, text
        await pilot.press("escape")
        await until(pilot, lambda: "○ large:8b" in shown(app))
        await pilot.press(*"sma", "enter", "enter")
        store.go_on.set()
        await until(pilot, lambda: app.answers)

    store = Store()
    picker = ModelPicker(store)
    assert play(picker, steps, size) == [Choice("small", Path("/models/small"))]


def test_a_slow_disk_blocks_nothing() -> None:
    store, picker_closed = Store("small"), threading.Event()
    store.answer = lambda: picker_closed.wait(5) and None
    app = Panel(ModelPicker(store))

    async def run() -> None:
        async with app.run_test(size=USUAL) as pilot:
            await pilot.press("escape")
            assert app.answers == [None]
            picker_closed.set()

    asyncio.run(run())


@sizes
def test_names_of_others_give_the_terminal_no_orders(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        assert_harmless(shown(app))
        assert "[bold red]" in text_of(app, "#detail")
        await pilot.press(*"bo", "delete")
        await until(pilot, lambda: picker.mode == "ask")
        assert_harmless(shown(app))
        assert "[bold red]" in " ".join(shown(app).split())

    picker = ModelPicker(Store(HOSTILE))
    play(picker, steps, size)


def test_lines_fit_their_width() -> None:
    here = [Installed(f"hf:org/漢字{'x' * 300}-7B:Q8_0", None, Path("/x"), 7000 * MB)]
    for row in model_rows(CATALOG, here, 1):
        for width in (20, 34, 36, 55, 56, 75, 76, 100, 200):
            assert max(line.cell_length for line in row.line(width).split("\n")) <= width


def test_what_is_meant_as_a_source() -> None:
    assert all(is_source(t) for t in ("hf:a/b", "a/b", "~x", "C:\\a", "model.GGUF"))
    assert not any(is_source(t) for t in ("smollm2", "llama 8b", ""))


def test_speed_and_time_left() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert pace.line(10 * MB, 100 * MB) == "10 MB of 100 MB"
    now[0] += 2
    assert pace.line(20 * MB, 100 * MB) == "20 MB of 100 MB · 5 MB/s · 16 s left"
    now[0] += 60  # it stood still meanwhile: what was before counts no more
    assert pace.line(20 * MB, 100 * MB) == "20 MB of 100 MB"
    assert [duration(s) for s in (3.2, 89, 91, 5400, 7500)] == [
        "3 s",
        "89 s",
        "2 min",
        "1 h 30 min",
        "2 h 5 min",
    ]


def test_the_hub_as_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGLLM_CACHE_DIR", str(tmp_path))
    store, default = HubStore(), load_catalog().default
    assert store.catalog() is load_catalog() and store.identify(default.name) is default
    assert store.folder(default) == tmp_path / "models"
    assert store.folder(SMALL).name == "hub"
    assert default.name not in [model.name for model in store.installed()]
    with pytest.raises(ModelNotFoundError):
        store.files_of(default.name)
    assert store.remove(default.name) == 0
