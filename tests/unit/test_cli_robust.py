"""The command line where things go wrong around it: pipes that break or say nothing, full disks, contexts that don't
fit, Ctrl-C while it is being imported."""

from __future__ import annotations

import json
import math
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import wgllm as package
from tests.tiny import tiny
from tests.unit.test_cli import MODEL, ROOT, one_line, wgllm
from wgllm import debug, hub, hub_progress
from wgllm.backends.numpy_weights import allocate
from wgllm.catalog import load_catalog
from wgllm.cli import main
from wgllm.cli.options import DEFAULT_MODEL
from wgllm.errors import UsageError
from wgllm.kv_types import KV_BITS
from wgllm.quant import format_by_name

GENERATE = ("generate", "-m", MODEL, "--raw", "--temp", "0", "-q")
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash in which ``wgllm`` is this one."""
    line = f'wgllm() {{ "{sys.executable}" -m wgllm "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, cwd=ROOT, timeout=120, stdin=subprocess.DEVNULL
    )


def test_without_a_command_the_help_is_a_usage_error() -> None:
    run = wgllm()
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == wgllm("--help").stdout


@POSIX
def test_an_argument_that_the_locale_cannot_decode_is_its_utf8() -> None:
    plain = wgllm("tokenize", "-m", MODEL, "--json", "é").stdout
    run = wgllm("tokenize", "-m", MODEL, "--json", "é", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert run.stdout == plain
    assert json.loads(plain)["text"] == "é"


@pytest.mark.parametrize("quiet", [["-q"], ["--simple-io"], []])
def test_quiet_says_nothing_of_downloads(
    quiet: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def resolve(name: str, *, download: bool, progress: hub.Progress | None = None) -> Path:
        (hub_progress.stderr_progress() if progress is None else progress).message("Fetching it")
        return Path(MODEL)

    monkeypatch.setattr(hub, "resolve", resolve)
    assert main(["generate", "--raw", "-n", "1", *quiet, "hi"]) == 0
    assert ("Fetching it" in capfd.readouterr().err) == (not quiet)


# Pipes


@POSIX
@pytest.mark.parametrize(
    "command",
    [
        f"wgllm generate -q -m {MODEL} --raw --ignore-eos -c 100000 hello | head -c 3",
        f"wgllm generate -q -m {MODEL} --raw --ignore-eos -c 100000 --json hello | head -c 3",
    ],
    ids=["text", "json"],
)
def test_a_reader_that_leaves_ends_it_as_sigpipe_would(command: str) -> None:
    run = shell(f"{command}; echo ${{PIPESTATUS[0]}} >&2")
    assert run.stderr.split() == [b"141"]


@POSIX
@pytest.mark.parametrize("arguments", [("--help",), ("show", MODEL)], ids=["help", "show"])
def test_a_reader_that_has_left_before_ends_it_as_sigpipe_would(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "wgllm", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        timeout=120,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [f"generate -q -m {MODEL} -n 4 hi", f"show {MODEL}", "--help"])
def test_a_full_disk_is_an_error_of_one_line(arguments: str) -> None:
    run = shell(f"wgllm {arguments} > /dev/full")
    assert run.returncode == 1
    assert run.stderr.decode().splitlines() == ["wgllm: No space left on device"]


def test_prompts_have_neither_a_byte_order_mark_nor_carriage_returns(tmp_path: Path) -> None:
    options = (*GENERATE, "-n", "1", "--display-prompt")
    file = tmp_path / "prompt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    plain = wgllm(*options, stdin=b"one\ntwo\rthree").stdout
    assert plain.startswith("one\ntwo\rthree")
    assert wgllm(*options, "-f", str(file)).stdout == plain
    assert wgllm(*options, stdin=file.read_bytes()).stdout == plain


def test_waiting_for_a_silent_pipe_is_told() -> None:
    args = ("generate", "-m", MODEL, "--raw", "--temp", "0", "-n", "3", "hi")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", "wgllm", *args], stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT
    )
    assert process.stderr is not None
    assert b"< /dev/null" in process.stderr.readline()
    assert process.communicate(timeout=120)[0].decode() == wgllm(*args).stdout


@pytest.mark.parametrize(("options", "told"), [((), True), (("-q",), False), (("-f", "-"), False)])
def test_waiting_is_not_told_where_it_is_known(
    options: tuple[str, ...], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where -q asks for silence, nor where stdin was named and is known to be waited for."""
    timers: list[threading.Timer] = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: timers.append(timer))
    reader, writer = os.pipe()
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["generate", "-m", MODEL, "--raw", "-n", "1", *options, "hi"]) == 0
    assert [timer.interval for timer in timers] == ([1.0] if told else [])


@POSIX
def test_a_closed_stdin_is_a_usage_error() -> None:
    run = shell(f"wgllm generate -m {MODEL} -p - <&-")
    assert run.returncode == 2 and b"stdin is closed" in run.stderr


# Ctrl-C


@POSIX
@pytest.mark.parametrize("module", ["wgllm.cli", "wgllm.cli.show"])
def test_ctrl_c_while_it_is_imported_is_130_too(module: str) -> None:
    code = f"""
import os, runpy, signal, sys
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            eval("interrupt()", {{"interrupt": interrupt}})  # as namedtuple does
sys.meta_path.insert(0, Finder())
sys.argv = ["wgllm", "show"]
runpy.run_module("wgllm", run_name="__main__", alter_sys=True)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 130 and run.stderr == "\n"


# The context


def test_a_context_of_0_is_the_models_own() -> None:
    name = {"llama.context_length": 20_000}
    with package.load(MODEL, overrides=name, ctx_size=0) as llm:
        assert llm.ctx_size == 20_000
    with package.load(MODEL, overrides=name) as llm:
        assert llm.ctx_size == 8192
    more = ("--override-kv", "llama.context_length=int:20000")
    run = wgllm("generate", "-m", MODEL, *more, "-c", "0", "-n", "1", "hi")
    assert run.returncode == 0 and "context 20000 " in run.stderr


@pytest.mark.parametrize("ctx", ["2000000000", "2147483648", "99999999999999999999"])
def test_a_context_that_can_not_be_is_a_usage_error(ctx: str) -> None:
    run = wgllm("generate", "-m", MODEL, "-c", ctx, "hi")
    assert run.returncode == 2 and f"a context of {ctx} tokens" in one_line(run)


@pytest.mark.parametrize("error", [OSError(12, "no"), OverflowError("no"), ValueError("no")])
def test_memory_that_is_not_there_is_a_memory_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(MemoryError):
        allocate((4,), huge_pages=False)


# bench and show


@pytest.mark.parametrize(
    "tests",
    [("-p", "0", "-n", "64"), ("-p", "8,17", "-n", "0"), ("-p", "8", "-n", "0", "-d", "0,9")],
)
@pytest.mark.parametrize(
    "context", [("-c", "16"), ("-c", "0", "--override-kv", "llama.context_length=int:16")]
)
def test_bench_refuses_a_context_too_small_for_its_tests(
    tests: tuple[str, ...], context: tuple[str, ...]
) -> None:
    run = wgllm("bench", "-m", MODEL, "-r", "1", *tests, *context)
    assert run.returncode == 2 and "context of 16" in one_line(run)


def test_bench_fills_a_context_that_is_just_large_enough() -> None:
    run = wgllm("bench", "-m", MODEL, "-r", "1", "-c", "17", "-p", "17", "-n", "16", "--json")
    assert run.returncode == 0, run.stderr
    assert [json.loads(line)["test"] for line in run.stdout.splitlines()] == ["pp17", "tg16"]


def test_bench_measures_at_a_depth() -> None:
    run = wgllm("bench", "-m", MODEL, "-r", "1", "-p", "8", "-n", "4", "-d", "0,20", "-c", "28", "--json")
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(r["test"], r["depth"]) for r in results] == [
        ("pp8", 0),
        ("tg4", 0),
        ("pp8 @ d20", 20),
        ("tg4 @ d20", 20),
    ]
    # Of a prompt only what comes after the depth counts.
    assert results[0]["bytes_per_token"] == results[2]["bytes_per_token"]
    assert "dispatches_per_token" not in results[0]


def test_bench_counts_the_weights_once_for_each_step_of_a_prompt() -> None:
    run = wgllm("bench", "-m", MODEL, "-r", "1", "-ub", "16", "-p", "16,40", "-n", "1", "--json")
    one, three, token = (json.loads(line)["bytes_per_token"] for line in run.stdout.splitlines())
    head = 4 * 512 * 64
    assert one == token / 16
    assert three == pytest.approx((3 * (token - head) + head) / 40)


def test_show_tells_what_the_cpu_takes_for_the_cache() -> None:
    facts = [json.loads(wgllm("show", MODEL, "--json", "-ctk", t).stdout)["memory"] for t in ("f32", "f16")]
    assert facts[0]["kv_bytes"] == facts[0]["cpu_kv_bytes"] == facts[1]["cpu_kv_bytes"]
    assert facts[1]["cpu_kv_bytes"] == 2 * facts[1]["kv_bytes"]
    shown = wgllm("show", MODEL).stdout
    assert "KV cache, f16, 512 tokens" in shown and "KV cache on the CPU, float32" in shown


def test_show_takes_one_model() -> None:
    for second in (("-m", str(tiny("qwen2.f32").path)), ("-hf", "org/model")):
        run = wgllm("show", MODEL, *second)
        assert run.returncode == 2 and "one model at a time" in one_line(run)


# One place for each thing


def test_the_default_model_is_the_catalogues() -> None:
    assert load_catalog().default.name == DEFAULT_MODEL


@pytest.mark.parametrize("name", [t for t in KV_BITS if t != "f32"])
def test_kv_types_take_what_their_formats_do(name: str) -> None:
    kind = format_by_name(name)
    size = math.lcm(32, kind.block_size)
    assert KV_BITS[name] == 8 * kind.row_bytes(size) / size


@pytest.mark.parametrize(("value", "level"), [("", 0), ("0", 0), ("1", 1), ("2", 2), ("yes", 1)])
def test_the_level_of_debugging(value: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGLLM_DEBUG", value)
    assert debug.level() == level


def test_a_negative_context_is_refused() -> None:
    with pytest.raises(UsageError, match="no sense"):
        package.load(MODEL, ctx_size=-1)
