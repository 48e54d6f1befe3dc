"""The model picker, over a store of a few lines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from wgllm.hub_hf import Described
from wgllm.hub_progress import Progress
from wgllm.tui.download import Download, Pace, duration
from wgllm.tui.offer import Offer
from wgllm.tui.picker import Choice, ModelPicker
from wgllm.tui.picker_models import HubStore, is_source, model_rows, paths_like

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
        self.unknown: Exception | None = None

    def catalog(self) -> Catalog:
        return CATALOG

    def installed(self) -> list[Installed]:
        self.answer()
        return [Installed(n, self.entries.get(n), path, 98 * MB) for n, path in self.here.items()]

    def identify(self, name: str) -> Entry | HubName | Path:
        if name.startswith("hf:"):
            repo, _, quant = name[3:].partition(":")
            return HubName(repo, quant or None)
        if name.startswith("/here/"):
            return Path(name)
        raise ModelNotFoundError(f"no such file: {name}")

    def is_here(self, target: Entry | HubName) -> bool:
        return (target.name if isinstance(target, Entry) else f"hf:{target.repo}") in self.here

    def folder(self, target: Entry | HubName) -> Path:
        return Path("/models")

    def look_up(self, target: Entry | HubName) -> Described | None:
        if self.unknown is not None:
            raise self.unknown
        size = target.size if isinstance(target, Entry) else 700 * MB
        return Described(("a.gguf",), size or 5 * MB, size or 5 * MB, "mit")

    def fetch(self, name: str, progress: Progress) -> Path:
        self.fetched.append(name)
        progress.message(f"Fetching {name}")
        progress.message("  licence: mit")
        progress.start(name, 100 * MB, 10 * MB)
        progress.message("hold on")
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


def offer(app: Panel) -> Offer:
    assert isinstance(app.screen, Offer)
    return app.screen


def offered(app: Panel) -> Callable[[], bool]:
    """Whether the dialog is there, and has been told all that it asked for."""
    return lambda: isinstance(app.screen, Offer) and offer(app).what.exact


def said(app: Panel, selector: str) -> str:
    """What stands in a widget of the dialog; nothing while the dialog is not there."""
    return text_of(app, selector) if isinstance(app.screen, Offer) else ""


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
        await until(pilot, offered(app))
        facts = " ".join(text_of(app, "#offer-facts").split())
        for text in (
            "Large 8B Instruct (Q4_K_M)",
            "4.92 GB",
            "Large Community License",
            "Kept in /models",
            "free",
        ):
            assert text in facts
        assert "larger than the memory" in text_of(app, "#offer-hint") and store.fetched == []
        await pilot.press("enter")
        await until(pilot, lambda: "25 MB of 100 MB" in said(app, "#offer-progress"))
        pace = picker._downloads.all_running()[0]._pace
        pace.WINDOW = 600.0
        pace._seen.appendleft(
            (pace._seen[0][0] - 1.0, 10 * MB)
        )  # as a second ago, however long the test takes
        await until(pilot, lambda: "/s" in said(app, "#offer-progress"))
        assert "left" in said(app, "#offer-progress") and "hold on" in said(app, "#offer-news")
        for text in ("Stop", "Go on behind"):
            assert text in shown(app)
        bar = app.screen.query_one(ProgressBar)
        assert (bar.total, bar.progress) == (100 * MB, 25 * MB)
        store.go_on.set()
        await until(pilot, lambda: app.answers)

    store = Store("small")
    picker = ModelPicker(store, memory=1000 * MB)
    assert play(picker, steps, size) == [Choice("large:8b", Path("/models/large:8b"))]


@pytest.mark.parametrize("by_mouse", [False, True], ids=["keys", "mouse"])
def test_a_download_is_stopped_and_goes_on(by_mouse: bool) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter")
        await until(pilot, offered(app))
        await (click(pilot, "#fetch") if by_mouse else pilot.press("enter"))
        await until(pilot, lambda: "25 MB" in said(app, "#offer-progress"))
        await (click(pilot, "#leave") if by_mouse else pilot.press("escape"))
        await until(pilot, lambda: app.screen is picker)
        assert "What has come is kept" in text_of(app, "#note")
        await until(pilot, store.interrupted.is_set)
        assert not app.answers
        store.go_on.set()
        await pilot.press("enter")
        await until(pilot, offered(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.answers)

    store = Store("small")
    picker = ModelPicker(store)
    assert play(picker, steps) == [Choice("large:8b", Path("/models/large:8b"))]
    assert store.fetched == ["large:8b", "large:8b"]


def test_a_download_goes_on_behind_and_is_found_again() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter")
        await until(pilot, offered(app))
        await pilot.press("enter")
        await until(pilot, lambda: "25 MB" in said(app, "#offer-progress"))
        await pilot.press("b")
        await until(pilot, lambda: app.answers == [None])
        again = ModelPicker(store, picker._downloads)
        await app.push_screen(again, app.answers.append)
        await until(pilot, lambda: "being fetched" in shown(app))
        await pilot.press("down", "enter")
        await until(pilot, lambda: "25 MB" in said(app, "#offer-progress"))
        store.go_on.set()
        await until(pilot, lambda: len(app.answers) == 2)

    store = Store("small")
    picker = ModelPicker(store)
    assert play(picker, steps)[1] == Choice("large:8b", Path("/models/large:8b"))
    assert store.fetched == ["large:8b"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DownloadError(f"the connection broke at {HOSTILE}"), "the connection broke"),
        (ValueError("[/bold] odd"), "the download failed: ValueError: [/bold] odd"),
    ],
)
def test_errors_stand_in_place_in_one_line(error: Exception, says: str) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter")
        await until(pilot, offered(app))
        await pilot.press("enter")
        await until(pilot, lambda: says in said(app, "#offer-problem"))
        assert "\n" not in said(app, "#offer-problem") and "Try again" in shown(app)
        assert_harmless(shown(app))
        store.error = None
        store.go_on.set()
        await pilot.press("enter")
        await until(pilot, lambda: app.answers)

    store = Store("small")
    store.error = error
    assert play(ModelPicker(store), steps) == [Choice("large:8b", Path("/models/large:8b"))]
    assert store.fetched == ["large:8b"] * 2


def test_what_the_source_says_against_it_is_told_before_anything_is_fetched() -> None:
    several = "org/repo has several models; name one as hf:org/repo:QUANT, of a-Q4_0.gguf, a-Q8_0.gguf"

    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await typed(pilot, app, "hf:org/repo")
        await pilot.press("enter")
        await until(pilot, lambda: several in said(app, "#offer-problem"))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is picker)
        assert picker._typed == "hf:org/repo" and not store.fetched

    store = Store("small")
    store.unknown = ModelNotFoundError(several)
    picker = ModelPicker(store)
    play(picker, steps)


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("down", "enter")
        await until(pilot, lambda: "not enough room" in said(app, "#offer-problem"))
        assert "10 MB free" in " ".join(said(app, "#offer-facts").split())

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10 * MB))
    play(ModelPicker(Store("small")), steps)


def test_offline_nothing_is_offered() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await until(pilot, lambda: "No model is here, and --offline" in text_of(app, "#note"))
        await pilot.press("up", "enter")
        assert "large:8b is not here, and --offline lets nothing be fetched: leave it out" in text_of(
            app, "#note"
        )
        assert app.screen is picker

    store = Store()
    picker = ModelPicker(store, offline=True)
    play(picker, steps)


def test_a_stopped_download_that_hangs_is_waited_for_by_the_next_one() -> None:
    begun, let_go, order = threading.Event(), threading.Event(), []

    def hangs(progress: Progress) -> Path:
        order.append("first")
        begun.set()
        let_go.wait(60)
        progress.update(1)
        raise AssertionError("it was stopped")

    def goes(progress: Progress) -> Path:
        assert not first._thread.is_alive()
        order.append("second")
        progress.start("x", 2, 2)
        assert second.share == "checking" and "checking" in second.line()
        return Path("/x")

    told: list[Any] = []
    first = Download("x", hangs, told.append)
    first.begin()
    assert begun.wait(60)
    first.stop()
    second = Download("x", goes, told.append, first)
    second.begin()
    while "was stopped" not in second.news:
        second.join(0.01)
    assert order == ["first"]
    let_go.set()
    second.join(60)
    assert second.state == "here" and order == ["first", "second"]
    assert [message.download for message in told] == [second]


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
        await until(pilot, lambda: "700 MB" in said(app, "#offer-facts"))
        facts = " ".join(said(app, "#offer-facts").split())
        assert "org/repo: a.gguf" in facts and "Licence mit" in facts and not store.fetched
        await pilot.press("enter")
        await until(pilot, lambda: app.answers)

    store = Store("small")
    assert play(ModelPicker(store), repository, size) == [
        Choice("hf:org/repo:Q8_0", Path("/models/hf:org/repo:Q8_0"))
    ]


def test_a_path_is_completed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("b.gguf", "a.gguf", "notes.txt", ".hidden.gguf"):
        (tmp_path / "models" / name).touch()

    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await typed(pilot, app, f"{tmp_path}/mo")
        await until(pilot, lambda: picker._paths)
        await pilot.press("tab")
        assert picker._typed == f"{tmp_path}/models/"
        await until(pilot, lambda: len(picker._paths) == 2)
        assert paths_like(f"{tmp_path}/models/.h") == [f"{tmp_path}/models/.hidden.gguf"]
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.answers)

    store = Store("small")
    store.identify = lambda name: Path(name)  # type: ignore[method-assign]
    picker = ModelPicker(store)
    path = tmp_path / "models" / "a.gguf"
    assert play(picker, steps) == [Choice(str(path), path)]


def test_a_word_that_is_no_name_is_told_with_what_is_like_it() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await typed(pilot, app, "smlal")
        await pilot.press("enter")
        await until(pilot, lambda: "no such file: smlal" in text_of(app, "#note"))

    play(ModelPicker(Store("small")), steps)


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
        await until(pilot, lambda: "○ small" in shown(app))
        assert "small" not in store.here
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
        for selector in ("#models", "#choose"):
            await (pilot.click("#models", offset=(5, 1)) if selector == "#models" else click(pilot, selector))
            await until(pilot, offered(app))
            assert offer(app).what.name == "large:8b"
            await click(pilot, "#leave")
            await until(pilot, lambda: app.screen is picker)
        await pilot.click("#models", offset=(5, 0))

    picker = ModelPicker(Store("small"))
    assert play(picker, steps) == [Choice("small", Path("/models/small"))]


@sizes
def test_on_the_first_run_the_default_model_is_marked(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await until(pilot, lambda: "No model is here yet" in text_of(app, "#note"))
        await pilot.press("enter")
        await until(pilot, offered(app))
        screen = " ".join(shown(app).replace("│", " ").split())
        for text in ("Small 135M", "98 MB", "Apache-2.0", "/models", "Fetch"):
            assert text in screen, text
        await pilot.press("enter")
        store.go_on.set()
        await until(pilot, lambda: app.answers)

    store = Store()
    picker = ModelPicker(store)
    assert play(picker, steps, size) == [Choice("small", Path("/models/small"))]


def test_a_slow_disk_blocks_nothing() -> None:
    store, picker_closed = Store("small"), threading.Event()
    store.answer = lambda: picker_closed.wait(60) and None
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
