"""The command line on tiny models: what goes to stdout, what to stderr, and exit codes. Each run is a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny
from wgllm.cli import COMMANDS

ROOT = Path(__file__).parents[2]
MODEL = str(tiny("llama-tied.f32").path)
CHAT_MODEL = str(tiny("qwen2.f32").path)


def wgllm(*args: str, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "wgllm", *args],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **env},
        timeout=120,
    )
    return subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode("utf-8"),
        done.stderr.decode("utf-8").replace("\r\n", "\n"),
    )


def one_line(run: subprocess.CompletedProcess[str]) -> str:
    """The error message: exactly one line on stderr, nothing on stdout, no traceback."""
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1 and "Traceback" not in run.stderr, run.stderr
    return run.stderr


def test_text_goes_to_stdout_and_the_rest_to_stderr() -> None:
    run = wgllm("generate", "-m", MODEL, "--raw", "-n", "8", "--temp", "0", "hello there")
    assert run.returncode == 0
    assert run.stdout.strip() and run.stdout.endswith("\n")
    assert "numpy" in run.stderr and "tok/s" in run.stderr and "context" in run.stderr
    assert wgllm("generate", "-m", MODEL, "--raw", "-n", "8", "--temp", "0", "-q", "hello there").stderr == ""


def test_all_ways_to_give_a_prompt_are_the_same() -> None:
    options = ("generate", "-m", MODEL, "--raw", "-n", "6", "--temp", "0", "-q")
    by_argument = wgllm(*options, "once upon").stdout
    assert by_argument
    assert wgllm(*options, "-p", "once upon").stdout == by_argument
    for named in (("-",), ("-p", "-"), ("-f", "-"), ()):
        assert wgllm(*options, *named, stdin=b"once upon").stdout == by_argument


def test_a_pipe_is_joined_after_the_prompt(tmp_path: Path) -> None:
    options = ("generate", "-m", MODEL, "--raw", "-n", "6", "--temp", "0", "-q")
    file = tmp_path / "prompt.txt"
    file.write_text("b\n", encoding="utf-8")
    joined = wgllm(*options, "-p", "a", "-f", str(file), stdin=b"c")
    assert joined.stdout == wgllm(*options, "-p", "a\n\nb\n\nc").stdout


def test_the_template_is_used_unless_raw() -> None:
    options = ("generate", "-m", CHAT_MODEL, "-n", "1", "-s", "1")
    with_template = wgllm(*options, "hello").stderr
    raw = wgllm(*options, "--raw", "hello").stderr

    def tokens(message: str) -> int:
        return int(message.split("prompt ")[1].split()[0])

    assert tokens(with_template) > tokens(raw)


def test_the_same_seed_gives_the_same_text() -> None:
    options = ("generate", "-m", MODEL, "--raw", "-n", "12", "-q", "--ignore-eos")
    assert wgllm(*options, "-s", "4", "hi").stdout == wgllm(*options, "-s", "4", "hi").stdout
    assert wgllm(*options, "-s", "4", "hi").stdout != wgllm(*options, "-s", "5", "hi").stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("generate", "-m", MODEL), 2, "no prompt"),
        (("generate", "-m", MODEL, "-f", "no-such-file", "x"), 2, "no-such-file"),
        (("generate", "-m", MODEL, "-", "-f", "-"), 2, "once"),
        (("generate", "--temp", "warm", "x"), 2, "--temp"),
        (("generate", "-m", MODEL, "--temp", "nan", "x"), 2, "temperature"),
        (
            ("generate", "-m", MODEL, "-q", "-c", "4", "--raw", "a long prompt, longer than four tokens"),
            2,
            "context",
        ),
        (("generate", "-m", "no-such-model", "x"), 3, "no-such-model"),
        (("generate", "-m", "./no-such-file.gguf", "x"), 3, "no-such-file.gguf"),
        (("generate", "-m", __file__, "x"), 4, "test_cli.py"),
        (("generate", "-m", MODEL, "--device", "no such card", "x"), 2, "no such card"),
        (("generate", "-m", MODEL, "--backend", "numpy", "-ngl", "3", "x"), 2, "no graphics card"),
        (("generate", "-m", MODEL, "-ngl", "most", "x"), 2, "most"),
        (("generate", "-m", MODEL, "--device-memory", "much", "x"), 2, "much"),
        (("show", "no-such-model"), 3, "no-such-model"),
        (("bench", "-m", MODEL, "-p", "many"), 2, "many"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(args: tuple[str, ...], code: int, says: str) -> None:
    run = wgllm(*args)
    assert run.returncode == code, run.stderr
    assert says in one_line(run)


def test_bytes_that_are_no_text_are_refused() -> None:
    run = wgllm("generate", "-m", MODEL, "-", stdin=b"\xff\xfe")
    assert run.returncode == 2 and "UTF-8" in one_line(run)


def test_tracebacks_only_when_asked_for() -> None:
    assert "Traceback" in wgllm("generate", "-m", __file__, "x", WGLLM_DEBUG="1").stderr


def test_text_is_utf8_whatever_the_locale() -> None:
    run = wgllm("generate", "-m", MODEL, "--raw", "-n", "4", "-q", "日本語 🎉", LC_ALL="C", PYTHONUTF8="0")
    assert run.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_keeps_what_was_printed_and_exits_with_130() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "wgllm",
            "generate",
            "-m",
            MODEL,
            "--raw",
            "--ignore-eos",
            "-c",
            "100000",
            "hello",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    first = process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    rest, messages = process.communicate(timeout=120)
    assert process.returncode == 130
    assert len(first) == 5 and (first + rest).endswith(b"\n")
    assert b"Traceback" not in messages


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m wgllm generate -m {MODEL} --raw --ignore-eos -c 100000 hello | head -c 3"
    run = subprocess.run(
        ["sh", "-c", command], capture_output=True, cwd=ROOT, timeout=120, stdin=subprocess.DEVNULL
    )
    assert len(run.stdout) == 3
    assert b"Traceback" not in run.stderr and b"Error" not in run.stderr


def test_bench_prints_one_object_a_line() -> None:
    run = wgllm("bench", "-m", MODEL, "-p", "16", "-n", "4,8", "-r", "2", "--json")
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [r["test"] for r in results] == ["pp16", "tg4", "tg8"]
    for r in results:
        assert r["tok_s_min"] <= r["tok_s"] <= r["tok_s_max"]
        assert r["bytes_per_token"] > 0
    # Three layers, and the embedding (512 × 64) that is read whole as the head.
    layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128
    assert results[1]["bytes_per_token"] == results[2]["bytes_per_token"] == 4 * (3 * layer + 512 * 64)
    assert 0 < results[1]["bandwidth_share"] < 1


def test_show_tells_metadata_tensors_and_memory() -> None:
    run = wgllm("show", MODEL, "--tensors")
    assert run.returncode == 0, run.stderr
    for text in ("llama.embedding_length", "blk.0.attn_q.weight", "KV cache, f16, 512 tokens"):
        assert text in run.stdout
    facts = json.loads(wgllm("show", MODEL, "--json", "-c", "100", "-ctk", "f32").stdout)
    # 3 layers × (K and V) × 2 heads × 16 numbers × 4 bytes × 100 tokens
    assert facts["memory"]["kv_bytes"] == 3 * 2 * 2 * 16 * 4 * 100
    assert facts["metadata"]["tokenizer.ggml.tokens"]["length"] == 512


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from wgllm.cli import main; main(['--help']); "
        "print([m for m in ('numpy', 'tokenizers', 'sentencepiece', 'jinja2', 'rich', 'huggingface_hub', 'textual', "
        "'wgpu', 'psutil') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert name in run.stdout


@pytest.mark.parametrize("command", [*COMMANDS])
def test_every_command_has_help_with_an_example(command: str) -> None:
    run = wgllm(command, "--help")
    assert run.returncode == 0
    assert f"wgllm {command}" in run.stdout
