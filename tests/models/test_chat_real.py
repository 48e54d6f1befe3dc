"""`wgllm chat` as a user runs it: typed into a shell in tmux, with a real model."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wgllm.sessions import SessionStore
from wgllm.sessions_types import MessageState

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


class Tmux:
    """A shell in a terminal of 90 by 30."""

    def __init__(self, folder: Path) -> None:
        self._command = ["tmux", "-S", str(folder / "tmux"), "-f", os.devnull]
        env = {**os.environ, "TERM": "screen-256color", "HISTFILE": os.devnull}
        self.run("new-session", "-d", "-x", "90", "-y", "30", "sh", env=env)

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self._command, *arguments], check=True, capture_output=True, env=env, cwd=ROOT
        )
        return done.stdout.decode()

    def type(self, text: str) -> None:
        self.run("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def until(self, true: Callable[[str], object], what: str) -> str:
        end = time.monotonic() + PATIENCE
        while not true(shown := self.screen()):
            assert time.monotonic() < end, f"never came: {what}\n{shown}"
            time.sleep(0.1)
        return shown


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        if os.environ.get("WGLLM_REQUIRE_TMUX"):  # CI, which has installed it
            pytest.fail("no tmux")
        pytest.skip("no tmux")
    made = Tmux(tmp_path)
    yield made
    made.run("kill-server")


@pytest.mark.model("smollm2")
def test_a_talk_in_a_terminal(tmp_path: Path, tmux: Tmux, model_path: Callable[[str], Path]) -> None:
    model_path("smollm2")  # fetched, so that it is not offered
    database = tmp_path / "chats.db"
    command = [sys.executable, "-m", "wgllm", "chat", "--backend", "numpy", "--db", str(database)]
    once = [*command, "-m", "smollm2", "--temp", "0", "-n", "24"]

    def replied(n: int) -> Callable[[str], object]:
        """So many replies are there, whole."""

        def look(shown: str) -> bool:
            with SessionStore.open(database) as store:
                path = store.path(sessions[0].id) if (sessions := store.sessions()) else []
            return len(path) == 2 * n and path[-1].state is MessageState.COMPLETE

        return look

    tmux.type("PS1='shell'; PS1=$PS1'> '")  # so that what is typed is no prompt
    tmux.press("Enter")
    tmux.until(lambda shown: "shell>" in shown, "the shell")
    tmux.type(shlex.join(once))
    tmux.press("Enter")
    tmux.until(lambda shown: "Ask something" in shown and "numpy" in shown, "the prompt and the model")
    tmux.type("What is the capital of France?")
    tmux.press("Enter")
    shown = tmux.until(replied(1), "the first answer")
    shown = tmux.until(lambda shown: "Paris" in shown, "its text")
    assert "What is the capital of France?" in shown
    tmux.type("And of Spain?")
    tmux.press("Enter")
    tmux.until(replied(2), "the second answer")
    tmux.until(lambda shown: "And of Spain?" in shown, "the second question")
    with SessionStore.open(database) as store:
        first, second = store.path(1)[1].stats, store.path(1)[3].stats
    assert first is not None and second is not None
    # The last token of a reply is never computed, and the template ends it in a way that may be tokenized otherwise.
    assert second["cached_tokens"] >= first["context_used"] - 4
    assert second["prompt_tokens"] - second["cached_tokens"] < second["prompt_tokens"] / 2

    tmux.type("half a tho")
    tmux.until(lambda shown: "half a tho" in shown, "the draft")
    tmux.press("C-c")
    tmux.until(lambda shown: "Ctrl+C again leaves" in shown, "the warning")
    tmux.press("C-c")
    tmux.until(lambda shown: shown.rstrip().endswith("shell>"), "the shell's prompt")
    tmux.type("echo $(( 6 * 7 )); stty -a | grep -o ' [-]*icanon\\| [-]*echo '")
    tmux.press("Enter")
    shown = tmux.until(
        lambda shown: "\n42\n" in shown and "icanon" in shown.split("\n42\n")[-1], "the shell's answer"
    )
    assert "-icanon" not in shown.split("\n42\n")[-1] and "-echo" not in shown.split("\n42\n")[-1]
    assert "echo $((" in shown, "what is typed is seen again"

    tmux.type(shlex.join([*command, "-r"]))
    tmux.press("Enter")
    shown = tmux.until(
        lambda shown: "And of Spain?" in shown and "half a tho" in shown, "the conversation again"
    )
    assert "Paris" in shown
    tmux.press("C-q")
    tmux.until(lambda shown: shown.rstrip().endswith("shell>"), "the shell's prompt")
