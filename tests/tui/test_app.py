"""The whole: sizes, themes, keys, panels, and the command that starts it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from textual.command import CommandList
from textual.widgets import Static

from tests.tui.running import Running, in_loop, running
from wgllm import cli
from wgllm.fake import FakeEngine
from wgllm.sessions import SessionStore
from wgllm.tui.app import ChatApp
from wgllm.tui.banner import Banner
from wgllm.tui.base import Start
from wgllm.tui.dialogs import Choice, Help
from wgllm.tui.inspector import TokenInspector
from wgllm.tui.picker import ModelPicker
from wgllm.tui.settings import SettingsPanel
from wgllm.tui.status import Figures, line
from wgllm.worker import Worker


@pytest.mark.parametrize("size", [(40, 16), (80, 24), (140, 40)])
def test_fits(tmp_path: Path, size: tuple[int, int]) -> None:
    @in_loop
    async def check() -> None:
        async with running(tmp_path, "A reply of *some* words", size=size) as run:
            await run.talk("Hi")
            shown = run.screen_text()
            assert "A reply of some words" in shown and max(map(len, shown.split("\n"))) <= size[0]
            assert "75/8,192" in shown
            await run.pilot.press("ctrl+b")
            await run.until(lambda: "search all" in run.screen_text())
            await run.pilot.press("escape")
            await run.until(lambda: run.app.prompt_bar.prompt.has_focus)
            await run.pilot.press("f1")
            await run.until(lambda: isinstance(run.app.screen, Help))
            await run.pilot.press("escape")

    check()


@in_loop
async def test_by_keyboard_alone(tmp_path: Path) -> None:
    async with running(tmp_path, size=(80, 30)) as run:
        await run.talk("Hi")
        await run.pilot.press("ctrl+up")
        assert run.views[1].has_focus
        await run.pilot.press("up")
        assert run.views[0].has_focus
        await run.pilot.press("down", "down")
        assert run.app.prompt_bar.prompt.has_focus
        await run.pilot.press("ctrl+p")
        await run.until(lambda: len(run.app.screen_stack) > 1)
        await run.pilot.press(*"new")
        found = run.app.screen.query_one(CommandList)
        await run.until(
            lambda: found.option_count and "New" in str(found.get_option_at_index(0).prompt), "it"
        )
        await run.pilot.press("enter")
        await run.until(lambda: run.app.session is None)


@in_loop
async def test_themes_are_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.command("/theme textual-light")
        assert run.app.theme == "textual-light" and not run.app.current_theme.dark
        await run.command("/theme nothing")
        assert "there is no theme 'nothing'" in run.notes()
    async with running(tmp_path) as run:
        assert run.app.theme == "textual-light"


@in_loop
async def test_ctrl_c_copies_stops_and_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, "word " * 1000, delay=0.05) as run:
        await run.ready()
        await run.app.ask("Go")
        await run.until(lambda: run.app.reply and run.app.reply.tokens > 3)
        await run.pilot.press("ctrl+c")
        await run.replied()
        await run.type("abc")
        await run.pilot.press("shift+home", "ctrl+c")
        await run.until(lambda: run.app.clipboard == "abc")
        clock = [1000.0]
        monkeypatch.setattr(run.app, "now", lambda: clock[0])
        await run.pilot.press("right", "ctrl+c")
        clock[0] += 3.1  # that was too long ago
        await run.pilot.press("ctrl+c")
        assert run.app.return_code is None
        clock[0] += 2.9
        await run.pilot.press("ctrl+c")
        await run.until(lambda: run.app.return_code == 0)


@in_loop
async def test_panels_open(tmp_path: Path) -> None:
    async with running(tmp_path, "abc") as run:
        await run.talk("Hi")
        for typed, screen in (("/set", SettingsPanel), ("/model", ModelPicker), ("/context", Choice)):
            await run.send(typed)
            await run.until(lambda screen=screen: isinstance(run.app.screen, screen), typed)
            await run.pilot.press("escape")
            await run.until(lambda: len(run.app.screen_stack) == 1)
        await run.send("/inspect")
        await run.until(lambda: isinstance(run.app.screen, TokenInspector))
        await run.pilot.press("escape")


def test_status_line_in_any_width() -> None:
    figures = Figures("smollm2", "webgpu on Radeon 780M (integrated, Vulkan)", "34.2 tok/s", 7000, 8192)
    assert " · ".join(line(figures, 200)).endswith("34.2 tok/s · ⚠ context 7,000/8,192 (85%)")
    assert line(figures, 40) == ("smollm2", "34.2 tok/s", "⚠ ctx 85%")
    for width in range(1, 200):
        assert sum(map(len, line(figures, width))) <= max(width, 20)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@in_loop
async def test_the_real_child_is_killed(tmp_path: Path) -> None:
    class Fake(Worker):
        """A worker whose child has a FakeEngine."""

        def load(self, model: Any, **options: Any) -> Any:
            return self.load_fake("word " * 4000, delay=0.005)

    model = tmp_path / "fake.gguf"
    model.touch()
    with SessionStore.open(tmp_path / "chats.db") as store:
        app = ChatApp(store, Start(model=str(model)), Fake)
        async with app.run_test(size=(80, 24)) as pilot:
            until = Running(app, pilot, store).until
            await until(lambda: app.facts is not None)
            await app.ask("Go")
            await until(lambda: app.reply and app.reply.tokens > 10)
            assert app.client is not None and isinstance(app.client.worker, Worker)
            pid = app.client.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: app.query_one(Banner).shown and app.reply is None)
            assert app.path[-1].content.startswith("word")
            assert "SIGKILL" in str(app.query_one("#banner-text", Static).render())
            await pilot.press("f5")
            await until(lambda: app.facts is not None and not app.loading)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["chat"]) == 2
    assert "--plain talks line by line" in capsys.readouterr().err
    assert cli.main(["chat", "--plain", "-r"]) == 2
    assert "leave --resume, --new and --db out" in capsys.readouterr().err

    seen: dict[str, Any] = {}

    def run(app: ChatApp) -> int:
        seen.update(start=app.start, sessions=app.store.sessions())
        return 0

    monkeypatch.setattr(ChatApp, "run", run)
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    database = tmp_path / "chats.db"
    with SessionStore.open(database) as store:
        one = store.new_session(title="Apples")
        store.new_session(title="Pears")
    typed = [
        "chat",
        "--db",
        str(database),
        "-r",
        "appl",
        "--temp",
        "0.5",
        "-c",
        "512",
        "-n",
        "9",
        "-sys",
        "Short.",
    ]
    assert cli.main([*typed, "--backend", "numpy", "-l", "5-inf"]) == 0
    start = seen["start"]
    assert start.resume == one.id and start.model is None and start.system_prompt == "Short."
    assert start.options["ctx_size"] == 512 and start.options["backend"] == "numpy" and start.max_tokens == 9
    assert start.sampling["temperature"] == 0.5
    app = ChatApp(None, start)  # type: ignore[arg-type]
    json.dumps(app.settings, allow_nan=False)
    assert app.sampling["logit_bias"] == {5: float("-inf")}
    assert cli.main([*typed[:3], "-r", "-n", "9"]) == 0 and seen["start"].resume == one.id + 1
    assert cli.main(typed[:3]) == 0 and seen["start"].resume is None, "it was left on a new one"
    with SessionStore.open(database) as store:
        store.kept.put("session", one.id)
    assert cli.main(typed[:3]) == 0 and seen["start"].resume == one.id
    for more in (["--new"], ["-sys", "Short."], ["--temp", "1"], ["-n", "9"], ["-m", __file__]):
        assert cli.main([*typed[:3], *more]) == 0 and seen["start"].resume is None, more
    with SessionStore.open(database) as store:
        store.delete(one.id)
    assert cli.main(typed[:3]) == 0 and seen["start"].resume is None, "it was deleted"
    assert cli.main([*typed[:3], "--new", "-r"]) == 2
    assert "either --resume or --new" in capsys.readouterr().err
    assert cli.main(["chat", "--db", "~no-such-user/x"]) == 2
    assert "no such user" in capsys.readouterr().err
    with SessionStore.open(database) as store:
        store.undelete(one.id)
    assert cli.main([*typed[:3], "-r", "e"]) == 2
    assert "give its number" in capsys.readouterr().err
    assert cli.main([*typed[:3], "-m", "no-such-model"]) == 3


def test_plain_is_generate_interactive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wgllm.cli import generate
    from wgllm.llm import Llm

    llm = Llm(FakeEngine(["first", "second"]))
    llm.use_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    monkeypatch.setattr(generate, "load_model", lambda **_: llm)
    from io import BytesIO, TextIOWrapper

    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"a\nb\n"), encoding="utf-8"))
    assert cli.main(["chat", "--plain", "--temp", "0"]) == 0
    assert capsys.readouterr().out == "first\nsecond\n"
