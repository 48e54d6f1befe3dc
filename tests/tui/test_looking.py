"""Looking into a reply: which tokens it was made of, what else was probable, and a branch from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tui.running import in_loop, running
from wgllm.tui.inspector import TokenInspector


@in_loop
async def test_any_reply_can_be_looked_into(tmp_path: Path) -> None:
    async with running(tmp_path, ["first", "second"]) as run:
        await run.app.run_command("/set temperature 0.5")
        await run.talk("Hi")
        await run.talk("And?")
        await run.pilot.press("ctrl+up", "up", "up", "i")
        await run.until(lambda: isinstance(run.app.screen, TokenInspector))
        asked = run.engine.requests[2]
        assert bytes(asked.given) == b"first" and asked.logprobs == 10
        assert list(asked.tokens) == list(run.engine.requests[0].tokens)
        assert asked.sampling.temperature == 0.5
        assert [t.text for t in run.app.screen._tokens] == list("first")
        await run.pilot.press("escape")
        await run.until(lambda: run.app.prompt_bar.prompt.has_focus)
        await run.pilot.press("ctrl+up", "up", "up", "i")
        await run.until(lambda: isinstance(run.app.screen, TokenInspector))
        assert len(run.engine.requests) == 3, "it was known"


@in_loop
async def test_branching_from_a_token(tmp_path: Path) -> None:
    async with running(tmp_path, ["abc", "xyz"]) as run:
        view = await run.talk("Hi")
        await run.app.branch_from(view.message, list(b"ab!"))
        await run.until(lambda: len(run.engine.requests) == 2)
        view = await run.replied()
        assert view.message.content == "ab!xyz" and view.message.n_siblings == 2
        assert run.engine.requests[1].tokens[-3:] == list(b"ab!")
        await run.command("/inspect")
        await run.until(lambda: isinstance(run.app.screen, TokenInspector))
        assert bytes(run.engine.requests[2].given) == b"ab!xyz"


@in_loop
async def test_a_reply_of_another_model_is_looked_into_by_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, "Grüße") as run:
        await run.talk("Hi")
        other = tmp_path / "other.gguf"
        other.touch()
        run.app.switch(str(other))
        await run.ready()
        texts, tokenize = [], run.worker.tokenize
        monkeypatch.setattr(
            run.worker, "tokenize", lambda t, **options: texts.append(t) or tokenize(t, **options)
        )
        await run.command("/inspect")
        await run.until(lambda: isinstance(run.app.screen, TokenInspector))
        assert texts == ["Grüße"] and bytes(run.engine.requests[0].given) == "Grüße".encode()


@in_loop
async def test_escape_ends_it(tmp_path: Path) -> None:
    async with running(tmp_path, "abc") as run:
        await run.talk("Hi")
        hold = run.hold()
        await run.pilot.press("ctrl+up", "i")
        await run.until(lambda: run.app._looking is not None)
        await run.pilot.press("escape")
        hold.set()
        await run.until(lambda: "looking into the reply was stopped" in run.notes())
        assert len(run.app.screen_stack) == 1 and run.app._looking is None
        await run.talk("Go on")
