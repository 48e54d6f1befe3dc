"""A model's way into the conversation: offered, fetched from a hub, loaded, exchanged, and what goes wrong on it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from textual.widgets import Button

from tests.tiny import tiny
from tests.tui.running import Running, in_loop, running, text_of
from tests.tui.thread_worker import ThreadWorker
from tests.unit.fake_hub import FakeHub
from wgllm.errors import DeviceError, ModelFileError, ModelNotFoundError, WgllmError
from wgllm.fake import FakeEngine
from wgllm.hub import resolve
from wgllm.hub_progress import SilentProgress
from wgllm.sessions import SessionStore
from wgllm.sessions_types import MessageState
from wgllm.tui import missing
from wgllm.tui.app import ChatApp
from wgllm.tui.banner import Banner
from wgllm.tui.base import Start
from wgllm.tui.download import Downloads
from wgllm.tui.offer import Offer
from wgllm.tui.picker import ModelPicker
from wgllm.tui.picker_models import HubStore
from wgllm.worker import Worker
from wgllm.worker_protocol import ModelFacts

TINY = tiny("llama-tied.q8_0").path
DATA = b"GGUF" + random.Random(5).randbytes(400_000 - 4)
REPO, NAME = "org/tiny-GGUF", "hf:org/tiny-GGUF"
PIECE = 4096


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a model, and empty caches in this process and in its children."""
    from huggingface_hub import constants

    with FakeHub({REPO: {"tiny-Q4_K_M.gguf": DATA}}) as fake:
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.endpoint + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
        for module in ("file_download", "utils._http"):  # no waiting between tries
            patient = importlib.import_module(f"huggingface_hub.{module}")
            monkeypatch.setattr(patient, "time", SimpleNamespace(sleep=lambda s: None, time=time.time))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        monkeypatch.setenv("WGLLM_CACHE_DIR", str(tmp_path / "own"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield fake


class ModelWorker(ThreadWorker):
    """Each model says its own name; those of ``errors`` fail."""

    errors: Mapping[str, WgllmError] = MappingProxyType({})
    pause = 0.0

    def load(self, model: str, **options: Any) -> Future[ModelFacts]:
        self.loads.append((model, options))
        self.facts = None
        return self._call(lambda: self._load_named(Path(model).stem, options))

    def _load_named(self, name: str, options: dict[str, Any]) -> ModelFacts:
        self.load_error = self.errors.get(name)
        self.make = lambda: FakeEngine(f"this is {name}", delay=self.pause)
        return self._load(options)


def start(name: str = NAME, **options: Any) -> Start:
    return Start(model=name, **options)


def shows(run: Running, selector: str) -> str:
    """What stands in a widget of the dialog; nothing while there is none."""
    screen = run.app.screen
    return text_of(screen.query_one(selector)) if isinstance(screen, Offer) else ""  # type: ignore[arg-type]


async def offered(run: Running) -> Offer:
    """The dialog, once it knows all."""
    await run.until(lambda: isinstance(run.app.screen, Offer) and run.app.screen.what.exact, "the dialog")
    assert isinstance(run.app.screen, Offer)
    return run.app.screen


def banner(run: Running) -> str:
    shown = run.app.screen_stack[0].query_one(Banner)
    return shown.text if shown.shown else ""


async def press_first(run: Running) -> None:
    """The first button of the banner."""
    buttons = run.app.screen_stack[0].query("#banner-buttons Button")
    await run.until(lambda: banner(run) and buttons, "the buttons")
    buttons.first(Button).press()


def model_file(folder: Path, name: str) -> str:
    path = folder / f"{name}.gguf"
    path.touch()
    return str(path)


def test_the_first_model_with_the_real_worker(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos = {REPO: {"tiny-Q4_K_M.gguf": TINY.read_bytes()}}
    hub.faults[REPO] = f"stall:{TINY.stat().st_size // 2}"

    @in_loop
    async def check() -> None:
        options = {"backend": "numpy", "chat_template": "chatml"}
        with SessionStore.open(tmp_path / "chats.db") as store:
            app = ChatApp(store, start(options=options, max_tokens=3, sampling={"temperature": 0}), Worker)
            async with app.run_test(size=(80, 24)) as pilot:
                run = Running(app, pilot, store)
                await offered(run)
                facts = " ".join(shows(run, "#offer-facts").split())
                for text in (
                    f"Download {TINY.stat().st_size / 1000:.0f} kB",
                    "Licence mit",
                    f"Kept in {tmp_path}",
                ):
                    assert text in facts.replace(" ", " "), facts
                await pilot.press("enter")
                await run.until(lambda: " kB of 168 kB" in shows(run, "#offer-progress"), "progress")
                await pilot.press("b")
                await run.until(lambda: len(app.screen_stack) == 1)
                await run.send("Hi")  # one need not wait for the model
                await run.until(lambda: app.reply is not None, "what waits")
                hub.faults.clear()
                hub.closing.set()
                await run.until(lambda: app.facts is not None and not app.loading, "the model")
                assert app.facts is not None and app.facts.architecture == "llama"
                await run.until(lambda: app.reply is None, "the reply")
                assert app.path[-1].token_count == 3 and app.path[-1].model == NAME
                app.exit(0)

    check()


@pytest.mark.parametrize("place", ["start", "picker"])
def test_stopped_halfway_and_gone_on_with(hub: FakeHub, tmp_path: Path, place: str) -> None:
    async def asked(run: Running) -> None:
        if place == "picker":
            if not isinstance(run.app.screen, ModelPicker):
                await run.command("/model")
                await run.until(lambda: isinstance(run.app.screen, ModelPicker) and run.app.screen._rows)
                run.app.screen.query_one("#filter").value = NAME  # type: ignore[attr-defined]
                await run.pilot.pause()
            await run.pilot.press("enter")
        elif banner(run):
            await press_first(run)
        await offered(run)

    @in_loop
    async def check() -> None:
        first = start() if place == "start" else start(model_file(tmp_path, "first"))
        async with running(tmp_path, start=first) as run:
            await asked(run)
            hub.faults[REPO] = "stall:200000"
            await run.pilot.press("enter")
            await run.until(lambda: "197 kB of 400 kB" in shows(run, "#offer-progress"), "half of it")
            thread = run.app.downloads.all_running()[0]
            await run.pilot.press("escape")
            await run.until(lambda: not isinstance(run.app.screen, Offer))
            if place == "start":
                assert "No model is loaded" in banner(run)
            hub.faults[REPO] = "file:404"  # what is left of the first try gets nothing any more
            hub.closing.set()
            await run.until(lambda: not thread._thread.is_alive(), "the end of the first connection")
            hub.faults.clear()
            hub.bytes_sent, hub.ranges[:] = 0, []
            await asked(run)
            assert "of it are here" in shows(run, "#offer-facts")
            came = run.app.screen.what.here  # type: ignore[attr-defined]
            await run.pilot.press("enter")
            await run.ready()
            await run.until(lambda: run.worker.loads[-1][0] == NAME)
            assert 0 < came <= 200_000 and hub.bytes_sent == len(DATA) - came
            assert hub.ranges == [f"bytes={came}-"]
            assert run.worker.loads[-1][1]["offline"]

    check()


@pytest.mark.parametrize("place", ["dialog", "behind"])
def test_an_error_on_the_way_and_another_try(hub: FakeHub, tmp_path: Path, place: str) -> None:
    @in_loop
    async def check() -> None:
        async with running(tmp_path, start=start()) as run:
            await offered(run)
            hub.faults[REPO] = "stall:200000" if place == "behind" else "cut:200000"
            await run.pilot.press("enter")
            if place == "behind":
                await run.until(lambda: "197 kB" in shows(run, "#offer-progress"))
                await run.pilot.press("b")
                await run.until(lambda: "fetching hf:org/tiny-GGUF 49%" in run.app.status.figures.middle)
                assert await run.app.ask("It waits")
                hub.faults[REPO] = "cut:200000"
                hub.closing.set()
                await run.until(lambda: "the connection to Hugging Face failed" in banner(run))
                await run.until(lambda: run.app.reply is None, "the error of what waited")
            else:
                await run.until(
                    lambda: "the connection to Hugging Face failed" in shows(run, "#offer-problem")
                )
                await run.until(lambda: "Try again" in run.screen_text())
            hub.faults.clear()
            hub.bytes_sent = 0
            if place == "behind":
                await press_first(run)
            else:
                await run.pilot.press("enter")
            await run.ready()
            assert hub.bytes_sent == len(DATA) - 200_000 // PIECE * PIECE
            if place == "behind":
                await run.pilot.press("ctrl+r")
                await run.until(lambda: run.contents()[-1] == ("assistant", "Hello there!"))

    check()


@pytest.mark.parametrize(
    ("fault", "says"),
    [("gated", "accept its conditions at https://huggingface.co/org/tiny-GGUF and give your token in HF_TOKEN"),
     ("wrong", "came with the wrong SHA-256; try again"),
     ("full", "no space left on the disk of"), ("file:503", "Hugging Face answers 503: try again later")],
)  # fmt: skip
def test_faults_say_what_to_do_in_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, says: str
) -> None:
    store = HubStore()
    what = missing.missing(NAME, store)
    assert what is not None
    if fault == "full":

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    hub.faults[REPO] = fault
    downloads = Downloads(store.fetch)
    download = downloads.begin(NAME)
    download.join(60)
    assert download.state == "failed" and says in download.problem and "\n" not in download.problem
    if fault == "gated":
        with pytest.raises(WgllmError, match="is gated"):
            missing.looked_up(what, store)
    hub.faults.clear()
    if fault != "full":
        again = downloads.begin(NAME)
        again.join(60)
        assert again.path is not None and again.path.read_bytes() == DATA


def test_what_is_known_before_it_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    store = HubStore()
    small = missing.missing("SmolLM2-135M-Instruct", store)
    gemma = missing.missing("gemma3", store)
    assert small is not None and gemma is not None and small.name == "smollm2"
    facts = dict(small.facts)
    assert facts["Licence"] == "Apache-2.0" and facts["Download"] == "92.9 MB"
    assert facts["Kept in"] == str(tmp_path / "own" / "models") and "free" in facts["Disk"]
    assert (
        "https://ai.google.dev/gemma/terms" in gemma.licence and "text comes with the model" in gemma.licence
    )
    assert missing.looked_up(small, store) is small
    assert missing.missing(str(tmp_path), store) is None
    hub.repos = {REPO: {f"a-Q{n}_0.gguf": DATA for n in (4, 8)}}
    several = missing.missing(NAME, store)
    assert several is not None
    with pytest.raises(
        ModelNotFoundError, match=r"name one as hf:org/tiny-GGUF:QUANT, of a-Q4_0.gguf, a-Q8_0.gguf"
    ):
        missing.looked_up(several, store)


@in_loop
async def test_offline_says_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    async with running(tmp_path, start=start(f"{NAME}:Q4_K_M", offline=True)) as run:
        await run.until(lambda: banner(run))
        assert (
            "hf:org/tiny-GGUF:Q4_K_M is not here, and --offline lets nothing be fetched: leave it out"
            in banner(run)
        )
        await run.until(lambda: "Another model" in run.screen_text())
        await run.command(f"/model {model_file(tmp_path, 'mine')}")
        await run.ready()
        await run.command("/model gemma3")
        await run.until(lambda: "--offline lets nothing be fetched" in run.notes())
        assert not banner(run) and (await run.talk("Still there?")).message.content == "Hello there!"
    assert hub.bytes_sent == 0


@in_loop
async def test_going_on_behind_while_another_model_answers(hub: FakeHub, tmp_path: Path) -> None:
    async with talking(tmp_path, "first") as run:
        await run.command(f"/model {NAME}")
        hub.faults[REPO] = "stall:200000"
        await offered(run)
        await run.pilot.press("enter", "b")
        await run.until(lambda: len(run.app.screen_stack) == 1)
        assert (await run.talk("Who?")).message.content == "this is first"
        await run.command(f"/model {NAME}")  # the dialog shows what runs
        await run.until(lambda: "197 kB of 400 kB" in shows(run, "#offer-progress"))
        await run.pilot.press("b")
        hub.faults.clear()
        hub.closing.set()
        await run.until(lambda: "hf:org/tiny-GGUF is here" in banner(run))
        assert run.app.model_name.endswith("first.gguf")
        await press_first(run)
        await run.until(lambda: run.app.model_name == NAME)
        assert (await run.talk("And now?")).message.content == "this is tiny-GGUF"


@in_loop
async def test_leaving_the_dialog_leaves_the_model_that_works(hub: FakeHub, tmp_path: Path) -> None:
    async with talking(tmp_path, "first") as run:
        for typed, tells in ((NAME, ""), ("no-such-model", "no model 'no-such-model'")):
            await run.command(f"/model {typed}")
            if tells:
                await run.until(lambda tells=tells: tells in run.notes())
            else:
                await offered(run)
                await run.pilot.press("escape")
                await run.until(lambda: len(run.app.screen_stack) == 1)
            assert not banner(run)
            assert (await run.talk("Who?")).message.content == "this is first"
        assert len(run.worker.loads) == 1


# Exchanging models


@contextlib.asynccontextmanager
async def talking(
    folder: Path, name: str, delay: float = 0.0, **broken: WgllmError
) -> AsyncIterator[Running]:
    """An application whose models say their names, with one that is loaded; models of ``broken`` fail so."""

    class Worker(ModelWorker):
        errors = broken
        pause = delay

    async with running(folder, start=start(model_file(folder, name)), worker_class=Worker) as run:
        await run.ready()
        yield run


def replies(run: Running) -> list[tuple[str, str]]:
    """What each model has said."""
    return [(Path(m.model).stem, m.content) for m in run.app.path if m.role == "assistant"]


@in_loop
async def test_another_model_in_the_middle_of_a_reply(tmp_path: Path) -> None:
    async with talking(tmp_path, "first", delay=0.5) as run:
        await run.app.ask("Who?")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 4, "a part of the reply")
        await run.command(f"/model {model_file(tmp_path, 'second')}")
        await run.until(lambda: run.app.reply is None, "the end of the reply")
        await run.until(lambda: len(run.worker.loads) == 2)
        await run.ready()
        run.engine.delay = 0.0
        await run.talk("And you?")
        (first, part), second = replies(run)
        assert first == "first" and len(part) > 4 and "this is first".startswith(part[:13])
        assert second == ("second", "this is second") and run.app.path[1].state is MessageState.STOPPED
        assert "second" in text_of(run.views[-1].query_one(".who"))  # type: ignore[arg-type]
        assert run.app.session is not None and run.app.session.model == run.app.model_name


@in_loop
async def test_of_two_quick_changes_the_last_one_holds(tmp_path: Path) -> None:
    paths = {name: model_file(tmp_path, name) for name in ("second", "third")}
    async with talking(tmp_path, "first") as run:
        slow = threading.Event()
        run.app.models = Slow({paths["second"]: slow})
        changes = [asyncio.create_task(run.app.begin_loading(path)) for path in paths.values()]
        await changes[1]
        slow.set()  # what was asked first is known last
        await changes[0]
        assert (await run.talk("Who?")).message.content == "this is third"
        run.worker.hold.clear()  # both are being loaded
        await run.app.begin_loading(paths["second"])
        await run.app.begin_loading(paths["third"])
        run.worker.hold.set()
        await run.ready()
        await run.talk("Who?")
        assert replies(run)[-1] == ("third", "this is third") and not banner(run)


class Slow(HubStore):
    """Knows what some names mean only later."""

    def __init__(self, waits: dict[str, threading.Event]) -> None:
        self.waits = waits

    def identify(self, name: str) -> Any:
        if name in self.waits:
            assert self.waits[name].wait(60)
        return super().identify(name)


@in_loop
async def test_models_that_do_not_load(tmp_path: Path) -> None:
    """A bad file, too little memory, a family that is not there: told in place, and one key back."""
    errors: dict[str, WgllmError] = {
        "bad": ModelFileError("bad.gguf", "header", "no GGUF file"),
        "large": DeviceError("not enough memory on the device"),
        "odd": ModelFileError("odd.gguf", "general.architecture", "this version can't run mamba"),
    }
    async with talking(tmp_path, "first", **errors) as run:
        await run.talk("Who?")
        await run.command("/set ctx_size 4096")
        await run.ready()
        before = run.contents()
        for name, error in errors.items():
            await run.command(f"/model {model_file(tmp_path, name)}")
            await run.until(lambda: f"{name} could not be loaded: {error}" in banner(run))  # noqa: B023
            await run.until(lambda: "Back to first (F7)" in run.screen_text())
            assert run.contents() == before
            await run.pilot.press("f7")
            await run.ready()
            assert run.worker.loads[-1][1]["ctx_size"] == 4096 and not banner(run)
        await run.talk("Again?")
        assert replies(run) == [("first", "this is first")] * 2


@in_loop
async def test_a_damaged_file_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    """Its size is right, so that only reading it tells."""
    HubStore().fetch(NAME, SilentProgress())
    path = HubStore().files_of(NAME)[0]
    path.resolve().write_bytes(bytes(len(DATA)))

    class Checking(ThreadWorker):
        def _load(self, options: dict[str, Any]) -> ModelFacts:
            resolve(self.loads[-1][0], download=not options["offline"], progress=SilentProgress())
            return super()._load(options)

    async with running(tmp_path, start=start(), worker_class=Checking) as run:
        await run.until(lambda: "is damaged" in banner(run))
        hub.bytes_sent = 0
        await press_first(run)
        await run.until(lambda: run.app.facts is not None, "the model")
        assert hub.bytes_sent == len(DATA) and path.read_bytes() == DATA
