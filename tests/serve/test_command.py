"""``wgllm serve`` and ``wgllm web``: what they refuse to start, what they say, how they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.serve.in_thread import PATIENCE, wait_for
from tests.serve.serve_process import PORT, stand_ins
from tests.serve.stand_ins import KEY, OTHERS
from wgllm.cli import main
from wgllm.serve.settings import KEY_VARIABLE

ROOT = Path(__file__).parents[2]
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
ADDRESS = re.compile(r"Serving stand-in at (https?://\S+:\d+) \(Ctrl-C ends it\)")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (KEY_VARIABLE, "DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WGLLM_DATA_DIR", str(tmp_path / "data"))
    for name, module in stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)


def refusal(*arguments: str, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command does not start."""
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("wgllm: ")
    return shown.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", OTHERS])
@pytest.mark.parametrize("more", [(), ("--tls",), ("--lazy",)])
def test_other_machines_are_not_let_in_without_a_key(
    host: str, more: Sequence[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--api-key-file FILE" in refusal("serve", "--host", host, *more, code=2, capsys=capsys)
    assert not (tmp_path / "data").exists()  # no certificate was made for it


WRONG = [
    (("--api-key-file", "/nonexistent/key"), "No such file"), (("--tls", "--tls-cert", "x"), "one of them"),
    (("--tls-key", "x"), "--tls-cert"), (("--tls-cert", "/nonexistent/cert"), "No such file"),
    (("--allow-origin", "example.com"), "--allow-origin"), (("--allow-origin", "*"), "key"),
    (("--allow-host", "a b"), "--allow-host"), (("--host", "no.such.host.invalid"), "--host"),
    (("--host", ""), "--host"),
    (("--port", "65536"), "--port"), (("--port", "x"), "--port"), (("--queue", "-1"), "--queue"),
    (("--api-key", KEY), "--api-key"), (("-m", "x", "-hf", "y"), "-hf"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"), WRONG, ids=lambda a: " ".join(a) if isinstance(a, tuple) else ""
)
def test_what_does_not_fit_is_a_usage_error(
    arguments: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal("serve", *arguments, code=2, capsys=capsys)


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing" in refusal("serve", "-m", "missing", "--port", "0", code=3, capsys=capsys)


def test_a_port_in_use_is_told_before_a_model_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        for command in ("serve", "web"):
            said = refusal(command, "-m", "missing", "--port", port, code=1, capsys=capsys)
            assert f"port {port}" in said and "--port 0" in said


@pytest.mark.parametrize("module", ["wgllm.cli.serve"])
def test_help_imports_no_server(module: str) -> None:
    heavy = ("starlette", "uvicorn", "pydantic", "numpy", "ssl")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


# Running


class Command:
    """A command that runs, and what it has said."""

    def __init__(self, *arguments: str, expected: str = r"Ctrl-C", **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serve.serve_process", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **env},
        )
        self.said = ""
        self.wait_for(expected)

    def wait_for(self, expected: str) -> None:
        assert self.process.stderr is not None
        with self._ending_in_time():
            while re.search(expected, self.said) is None:
                line = self.process.stderr.readline()
                assert line, self.said
                self.said += line

    @property
    def address(self) -> str:
        found = ADDRESS.search(self.said)
        assert found is not None, self.said
        return found[1]

    def end(self, number: int) -> int:
        """The exit code after a signal. A process that waits for what takes for ever is killed."""
        assert self.process.stderr is not None
        self.process.send_signal(number)
        with self._ending_in_time():
            # Not communicate(), which knows nothing of what readline() has read beyond its line.
            self.said += self.process.stderr.read()
            return self.process.wait()

    @contextlib.contextmanager
    def _ending_in_time(self) -> Iterator[None]:
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    """Those that a test has started; none stays behind."""
    started: list[Command] = []
    yield started
    for command in started:
        command.process.kill()
        command.process.wait()
        assert command.process.stderr is not None
        command.process.stderr.close()


@POSIX
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_while_it_streams(commands: list[Command], number: int, code: int) -> None:
    command = Command("serve", "--port", "0", expected="Computing for /v1: a stand-in; for the page")
    commands.append(command)
    with urllib.request.urlopen(f"{command.address}/health", timeout=PATIENCE) as answer:
        assert b'"ready"' in answer.read()
    with urllib.request.urlopen(f"{command.address}/v1/events", timeout=PATIENCE) as stream:
        assert stream.read(10)
        ended = command.end(number)
    assert ended == code
    assert command.said.count("engine closed in ready") == 1
    assert "Traceback" not in command.said and "Error" not in command.said


@POSIX
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_while_a_thread_computes(commands: list[Command], number: int, code: int) -> None:
    command = Command("serve", "--port", "0")
    commands.append(command)
    host, port = command.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(b"GET /api/compute HTTP/1.1\r\nHost: localhost\r\n\r\n")
        command.wait_for("answering")
        ended = command.end(number)
    assert ended == code
    assert "engine closed" in command.said and "Traceback" not in command.said


def test_an_engine_that_can_not_start_ends_the_server_with_its_code(commands: list[Command]) -> None:
    command = Command("serve", "-m", "broken", "--port", "0", expected="wgllm: there is no graphics card")
    commands.append(command)
    assert command.process.wait(PATIENCE) == 5


@POSIX
def test_lazily_the_engine_is_not_started(commands: list[Command]) -> None:
    command = Command(
        "serve", "-m", "broken", "--lazy", "--port", "0", expected="loaded when it is first asked"
    )
    commands.append(command)
    assert command.end(signal.SIGTERM) == 143
    assert "engine closed in idle" in command.said


@POSIX
def test_web_takes_another_port_and_opens_the_page(commands: list[Command], tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(
        f'#!/bin/sh\necho "$1" > {tmp_path}/opened.part\nmv {tmp_path}/opened.part {tmp_path}/opened\n'
    )
    browser.chmod(0o755)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        command = Command("web", BROWSER=str(browser), **{PORT: taken})
        commands.append(command)
    assert not command.address.endswith(f":{taken}")
    wait_for((tmp_path / "opened").is_file)
    assert (tmp_path / "opened").read_text().strip() == command.address
    assert command.end(signal.SIGINT) == 130
    assert command.said.count("\n") <= 5


@POSIX
def test_the_page_of_this_machine_needs_no_key(commands: list[Command]) -> None:
    """Not even that of a server, which the environment may have: the opened page would not know it."""
    for key in (KEY, "short"):
        command = Command("web", "--port", "0", WGLLM_API_KEY=key)
        commands.append(command)
        with urllib.request.urlopen(f"{command.address}/health", timeout=PATIENCE) as answer:
            assert b'"engine"' in answer.read()
        assert command.end(signal.SIGTERM) == 143


@POSIX
def test_where_nothing_can_be_seen_or_nobody_wants_it_no_browser_is_opened(commands: list[Command]) -> None:
    for arguments, env in (
        (("web", "--port", "0"), {}),
        (("web", "--port", "0", "--no-open"), {"BROWSER": "false"}),
    ):
        command = Command(*arguments, **env)
        commands.append(command)
        assert command.end(signal.SIGTERM) == 143  # perhaps while it starts
        assert "engine closed in idle" in command.said


@POSIX
@pytest.mark.parametrize("tls", [False, True])
def test_for_other_machines_it_says_what_browsers_will_do(
    commands: list[Command], tmp_path: Path, tls: bool
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o644)
    options = ["--tls"] if tls else []
    expected = "SHA-256 is [0-9A-F:]{95}" if tls else "browsers hide WebGPU.*--tls"
    command = Command(
        "serve", "--host", "0.0.0.0", "--port", "0", "--api-key-file", str(key), *options, expected=expected
    )
    commands.append(command)
    assert command.address.startswith("https" if tls else "http:") and "0.0.0.0" not in command.address
    assert "other users of this machine may read the key" in command.said and KEY not in command.said
    assert command.end(signal.SIGTERM) == 143


@POSIX
def test_verbose_has_a_line_for_each_request(commands: list[Command]) -> None:
    command = Command("web", "--port", "0", "-v")
    commands.append(command)
    with urllib.request.urlopen(f"{command.address}/health?private", timeout=PATIENCE):
        pass
    command.wait_for("wgllm: GET /health 200 ")
    command.end(signal.SIGTERM)
    assert "private" not in command.said
