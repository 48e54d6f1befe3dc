"""``wgllm generate -i`` through a pipe, and on a real (pseudo) terminal."""

from __future__ import annotations

import codecs
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import tiny
from wgllm.cli import main
from wgllm.engine import Engine, Request
from wgllm.llm import load

ROOT = Path(__file__).parents[2]
TEXT = str(tiny("llama-tied.f32").path)
CHAT = str(tiny("qwen2.f32").path)
COMMAND = [sys.executable, "-m", "wgllm", "generate", "--ignore-eos", "--temp", "0"]

PROMPT = r"> (?:\x1b\[[0-9;?]*[a-zA-Z])*$"

needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo terminals of this kind")


def talk(*args: str, lines: str, model: str = CHAT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "-m", model, "-i", *args],
        input=lines,
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=120,
    )


def prompts(run: subprocess.CompletedProcess[str]) -> list[tuple[int, int]]:
    """Prompt tokens and cached ones of each turn."""
    found = re.findall(r"prompt (\d+) tokens(?: \((\d+) cached\))?", run.stderr)
    return [(int(n), int(cached or 0)) for n, cached in found]


def test_lines_of_a_pipe_are_turns_and_the_cache_is_used() -> None:
    run = talk("-n", "6", lines="hello\n\nagain\n")
    assert run.returncode == 0, run.stderr
    assert ">" not in run.stderr and "\x1b" not in run.stdout + run.stderr
    first, second = prompts(run)
    assert first[1] == 0 and second[1] >= first[0]
    assert len(run.stdout.splitlines()) >= 2


def test_several_lines_are_one_turn() -> None:
    joined = talk("-n", "4", lines='one\\\ntwo\n"""three\n  four\nfive"""\n"""six"""')
    assert len(prompts(joined)) == 3 and joined.returncode == 0
    escaped = talk("-n", "4", "-p", "one\ntwo", "-st", lines="never read\n")
    assert prompts(escaped) == prompts(joined)[:1]


def test_commands(tmp_path: Path) -> None:
    file = tmp_path / "a conversation.md"
    lines = ["first", "second", "/undo", "/regen", f'/save "{file}"', f"/save {file}", "third"]
    lines += [
        f"/save {file}",
        "/nothing",
        "/save",
        "//slash",
        "/clear",
        "/undo",
        "fourth",
        "/help",
        "/exit",
        "x",
    ]
    run = talk("-n", "3", "-q", "--show-timings", lines="\n".join(lines))
    assert run.returncode == 0, run.stderr
    turns = prompts(run)
    assert len(turns) == 6  # first, second, regen, third, //slash, fourth
    assert turns[2][0] == turns[0][0]
    assert turns[5][0] < turns[4][0]
    assert "/nothing is no command" in run.stderr and "no turn yet" in run.stderr and "/regen" in run.stderr
    text = file.read_text(encoding="utf-8")
    assert "first" in text and "third" in text and "second" not in text and "## assistant" in text


def test_save_does_not_replace_what_others_wrote(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine", encoding="utf-8")
    run = talk("-n", "1", lines=f"hi\n/save {file}\n/save {tmp_path / 'no' / 'x'}\n")
    assert "is there already" in run.stderr and "No such file" in run.stderr and run.returncode == 0
    assert file.read_text(encoding="utf-8") == "mine"


def test_text_without_a_template_grows_and_keeps_the_reverse_prompt() -> None:
    free = talk("-no-cnv", "-n", "12", "-st", "-p", "once", lines="", model=TEXT).stdout
    stop = free[4:7]
    run = talk("-no-cnv", "-n", "12", "-p", "once", "-r", stop, lines="more\n", model=TEXT)
    assert run.stdout.startswith(free[: free.index(stop) + len(stop)])
    first, second = prompts(run)
    assert second[1] >= first[0]


def test_a_full_context_is_told_and_the_conversation_goes_on() -> None:
    long = "many words " * 300
    run = talk("-n", "4", lines=f"hello\n{long}\nhello again\n")
    assert run.returncode == 1  # a script must be able to see it
    assert "a larger one is needed" in run.stderr and "/clear" in run.stderr
    assert len(prompts(run)) == 2
    shifted = talk("-n", "4", "-c", "120", "--context-shift", lines="hello there you\n" * 6)
    assert shifted.returncode == 0 and "turns were dropped" in shifted.stderr
    assert len(prompts(shifted)) == 6 and all(n <= 120 for n, _ in prompts(shifted))


def conversation(monkeypatch: pytest.MonkeyPatch, *args: str, lines: str) -> list[Request]:
    """The requests of a conversation in this process."""
    made: list[Request] = []
    submit = Engine.submit

    def noted(engine: Engine, request: Request) -> int:
        made.append(request)
        return submit(engine, request)

    monkeypatch.setattr(Engine, "submit", noted)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode()), "utf-8"))
    assert main(["generate", "--ignore-eos", "--temp", "0", "-i", *args]) == 0
    return made


def test_a_text_that_was_shifted_keeps_its_beginning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("-m", TEXT, "--raw", "-n", "4", "-c", "48", "--context-shift")
    lines = "".join(f"line {i}\n" for i in range(9))
    for keep, kept in (("0", 1), ("3", 3), ("-1", None)):
        made = conversation(monkeypatch, *options, "--keep", keep, lines=lines)
        first = made[0].tokens[:kept]
        assert all(r.tokens[: len(first)] == first and len(r.tokens) <= 48 for r in made)
        assert len(made) == 9 and "the older part was dropped" in capfd.readouterr().err


def test_no_turn_is_said_to_be_dropped_when_there_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    run = talk("-n", "4", "-c", "32", "--context-shift", lines="many words " * 40)
    assert "a larger one is needed" in run.stderr and "dropped" not in run.stderr


def test_special_tokens_that_are_shown_are_no_part_of_the_reply(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with load(CHAT) as llm:
        (bias,) = llm.tokenize("<|im_end|>", add_special=False, parse_special=True)
    file = tmp_path / "saved"
    options = ("-m", CHAT, "-n", "3", "-sp", "--logit-bias", f"{bias}+1000")
    made = conversation(monkeypatch, *options, lines=f"hello\nagain\n/save {file}\n")
    assert capfd.readouterr().out.count("<|im_end|>") == 6 and len(made) == 2
    assert "<|im_end|>" not in file.read_text(encoding="utf-8")
    assert list(made[1].tokens).count(bias) == 2 + list(made[0].tokens).count(bias)


def test_the_first_prompt_comes_before_the_lines() -> None:
    run = talk("-n", "2", "-p", "hello", "-sys", "Be brief.", lines="again\n")
    assert len(prompts(run)) == 2
    assert len(prompts(talk("-n", "2", "-p", "hello", "-st", lines="again\n"))) == 1


class Terminal:
    """A program on a pseudo terminal."""

    def __init__(self, *args: str, **env: str) -> None:
        import pty
        import termios

        self.master, slave = pty.openpty()
        self.attributes = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **env},
            start_new_session=True,
            preexec_fn=self._own_terminal,
        )
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def _own_terminal(self) -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str, timeout: float = 120) -> str:
        """What came up to and with ``pattern``."""
        deadline = time.monotonic() + timeout
        while (match := re.search(pattern, self.seen, re.DOTALL)) is None:
            left = deadline - time.monotonic()
            ready = select.select([self.master], [], [], max(0, left))[0]
            assert ready, f"{pattern!r} did not come: {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux: nobody has the other side any more
                data = b""
            assert data, f"ended before {pattern!r}: {self.seen!r}"
            self.seen += self._decoder.decode(data)
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def left(self) -> int:
        """Waits for the end; the exit code. The terminal must be as it was."""
        import termios

        deadline = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += self._decoder.decode(os.read(self.master, 65536))
        code = self.process.wait(timeout=1)  # the loop has waited
        while select.select([self.master], [], [], 0)[0]:  # its last words
            self.seen += self._decoder.decode(os.read(self.master, 65536))
        assert termios.tcgetattr(self.slave) == self.attributes
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {"WGLLM_STATE_DIR": str(tmp_path / "state"), "NO_COLOR": "1"}


@needs_terminal
def test_a_conversation_at_a_terminal(tmp_path: Path, state: dict[str, str]) -> None:
    terminal = Terminal("-m", CHAT, "-i", "-n", "5", **state)
    try:
        terminal.until(PROMPT)
        terminal.send("helo\x1b[Dl\n")  # the cursor goes back one: hello
        assert "tok/s" in terminal.until(r"seed \d+\s+" + PROMPT)
        terminal.send('"""one\n')
        terminal.until("… ")
        terminal.send('two"""\n')
        terminal.until(r"cached\).*seed \d+\s+" + PROMPT)
        terminal.send("\x1b[A\x1b[A\x1b[A\x01")  # history, and the line's beginning
        terminal.until("hello")
        terminal.send("\x0b/save " + str(tmp_path / "saved") + "\n")
        terminal.until(f"saved in {tmp_path / 'saved'}")
        terminal.until(PROMPT)  # before it the terminal itself would take what comes
        terminal.send("\x04")
        assert terminal.left() == 0
    finally:
        terminal.close()
    text = (tmp_path / "saved").read_text(encoding="utf-8")
    assert "hello\n" in text and "one\ntwo\n" in text
    history = tmp_path / "state" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.read_text(encoding="utf-8").splitlines()[:3] == ["hello", '"""one', 'two"""']
    again = Terminal("-m", CHAT, "-i", **state)
    try:
        again.until(PROMPT)
        again.send("\x1b[A\x1b[A\x1b[A\x1b[A")
        again.until("hello")
        again.send("\x15/exit\n")
        assert again.left() == 0
    finally:
        again.close()


@needs_terminal
def test_ctrl_c_stops_a_reply_and_keeps_it_and_twice_leaves(tmp_path: Path, state: dict[str, str]) -> None:
    terminal = Terminal("-m", CHAT, "-i", "-c", "100000", **state)
    try:
        terminal.until(PROMPT)
        terminal.send("hello\n")
        terminal.until(r"hello.*\S{20}")
        terminal.send("\x03")
        terminal.until("stopped; the text is kept")
        terminal.until(PROMPT)
        saved = tmp_path / "saved"
        terminal.send(f"/save {saved}\n")
        terminal.until("saved in")
        terminal.until(PROMPT)
        assert len(saved.read_text(encoding="utf-8").split("## assistant")[1].strip()) > 10
        terminal.send("half a li\x03")
        terminal.until("Ctrl-C again")
        terminal.until(PROMPT)
        terminal.send("/help\n")  # then it is not the second one
        terminal.until("/regen")
        terminal.until(PROMPT)
        terminal.send("\x03")
        terminal.until("Ctrl-C again")
        terminal.until(PROMPT)
        terminal.send("\x03")
        assert terminal.left() == 130
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


@needs_terminal
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_at_the_prompt_puts_the_terminal_back(state: dict[str, str], name: str, code: int) -> None:
    terminal = Terminal("-m", CHAT, "-i", **state)
    try:
        terminal.until(PROMPT)
        terminal.process.send_signal(getattr(signal, name))
        assert terminal.left() == code
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


@needs_terminal
@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_no_colours_and_no_animation_where_they_are_not_wanted(tmp_path: Path, env: dict[str, str]) -> None:
    lines = tmp_path / "p"
    lines.write_text('{"prompt": "x"}\n', encoding="utf-8")
    text = ["-m", CHAT, "-n", "3", "--display-prompt", "x"]
    batch = ["-m", CHAT, "-n", "3", "--prompts", str(lines), "--simple-io"]
    for args in (text, batch):
        terminal = Terminal(*args, **env)
        try:
            assert terminal.left() == 0
            shown = terminal.seen
            if "TERM" not in env and args is text:  # the line that tells of loading, which has no colour
                shown = shown.replace("\r\x1b[K", "")
            assert "\x1b" not in shown
        finally:
            terminal.close()


@needs_terminal
def test_colours_and_progress_on_a_terminal(tmp_path: Path) -> None:
    lines = tmp_path / "p"
    lines.write_text('{"prompt": "x"}\n' * 3, encoding="utf-8")
    environment = {"NO_COLOR": ""}
    for args, expected in (
        (["-m", CHAT, "-n", "3", "--display-prompt", "x"], r"\x1b\[33m.*\x1b\[0m"),
        (["-m", CHAT, "-n", "3", "--prompts", str(lines), "--out", str(tmp_path / "o")], r"\] 2/3 "),
    ):
        terminal = Terminal(*args, **environment)
        try:
            terminal.until(expected)
            assert terminal.left() == 0
        finally:
            terminal.close()


@needs_terminal
def test_a_terminal_with_output_elsewhere_gets_the_prompt_on_stderr(tmp_path: Path) -> None:
    import pty

    master, slave = pty.openpty()
    out = tmp_path / "out"
    with out.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, "-m", CHAT, "-i", "-n", "3"],
            stdin=slave,
            stdout=file,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        os.write(master, b"hello\n\x04")
        _, messages = process.communicate(timeout=120)
    os.close(master)
    os.close(slave)
    assert process.returncode == 0 and b"> " in messages
    assert b">" not in out.read_bytes()[:2] and out.stat().st_size
