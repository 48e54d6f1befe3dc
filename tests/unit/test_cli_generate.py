"""The options of ``wgllm generate``, in this process: what goes to stdout, what to stderr, exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.tiny import tiny
from wgllm.cli import main
from wgllm.cli.console import harmless
from wgllm.cli.prompts import unescape
from wgllm.cli.render import Messages, wants_colour
from wgllm.errors import UsageError

ROOT = Path(__file__).parents[2]
TEXT = str(tiny("llama-tied.f32").path)
CHAT = str(tiny("qwen2.f32").path)


class Run(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def wgllm(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(*args: str) -> Run:
        capfd.readouterr()
        code = main(["generate", *args])
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return run


Wgllm = Callable[..., Run]
GREEDY = ("--temp", "0", "--ignore-eos")
RAW = ("-m", TEXT, "--raw", *GREEDY)


def test_escapes_are_those_of_llama_cpp() -> None:
    assert unescape(r"a\nb\tc\rd\\e\'f\"g") == "a\nb\tc\rd\\e'f\"g"
    assert unescape(r"\x41\xc3\xa9") == "Aé"
    assert unescape("\\q \\ \\x4 \\xzz é \\") == "\\q \\ \\x4 \\xzz é \\"
    assert unescape(r"\\n") == r"\n"
    with pytest.raises(UsageError, match="UTF-8"):
        unescape(r"\xff")
    # What a locale of ASCII could not decode.
    assert unescape("\udcc3\udca9\\n") == "é\n"


def test_escapes_work_in_what_is_typed_and_in_files_when_asked_for(wgllm: Wgllm, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text(r"one\ntwo", encoding="utf-8")
    options = (*RAW, "-n", "1", "-q", "--display-prompt")

    def prompt(*args: str) -> str:
        return wgllm(*options, *args).out

    assert "one\ntwo" in prompt("-p", r"one\ntwo")
    assert r"one\ntwo" in prompt("--no-escape", "-p", r"one\ntwo")
    assert r"one\ntwo" in prompt("-f", str(file))
    assert "one\ntwo" in prompt("-e", "-f", str(file))


def test_escapes_of_sequence_breakers_are_those_of_prompts(wgllm: Wgllm) -> None:
    options = (*RAW, "-n", "1", "-v", "--dry-sequence-breaker", r"\x41\n", "hi")
    assert r"('A\n',)" in wgllm(*options).err
    assert r"('\\x41\\n',)" in wgllm(*options, "--no-escape").err


def test_the_system_prompt_from_text_or_file(wgllm: Wgllm, tmp_path: Path) -> None:
    file = tmp_path / "system"
    file.write_text("Be brief.\n", encoding="utf-8")
    options = ("-m", CHAT, *GREEDY, "-n", "1", "-q", "--display-prompt", "-sp", "hello")
    by_text = wgllm(*options, "-sys", "Be brief.").out
    assert "Be brief." in by_text and "system" in by_text
    assert wgllm(*options, "-sysf", str(file)).out == by_text
    assert "Be brief." not in wgllm(*options).out


def test_the_prompt_is_shown_only_when_asked_for(wgllm: Wgllm) -> None:
    text = wgllm(*RAW, "-n", "4", "-q", "once upon").out
    assert wgllm(*RAW, "-n", "4", "-q", "--display-prompt", "once upon").out == "once upon" + text
    assert wgllm(*RAW, "-n", "4", "-q", "--no-display-prompt", "once upon").out == text


def test_special_tokens_of_a_prompt(wgllm: Wgllm) -> None:
    options = ("-m", CHAT, *GREEDY, "-n", "1", "--display-prompt", "hello <|im_end|>")
    assert wgllm(*options, "-q").out.count("<|im_end|>") == 1  # the user's, which is text
    assert wgllm(*options, "-q", "-sp").out.count("<|im_end|>") > 1
    raw = ("-m", CHAT, *GREEDY, "-n", "1", "--json", "-q", "--raw", "hello <|im_end|>")

    def length(*args: str) -> int:
        n = json.loads(wgllm(*raw, *args).out.splitlines()[-1])["stats"]["prompt_tokens"]
        assert isinstance(n, int)
        return n

    assert length("--parse-special") < length()


def test_a_reverse_prompt_ends_the_text(wgllm: Wgllm) -> None:
    text = wgllm(*RAW, "-n", "20", "-q", "once").out
    stop = text[5:8]
    assert wgllm(*RAW, "-n", "20", "-q", "once", "-r", "never there", "-r", stop).out.rstrip("\n") == (
        text[: text.index(stop)].rstrip("\n")
    )


def test_json_is_a_line_for_each_token_and_one_for_the_end(wgllm: Wgllm) -> None:
    run = wgllm(*RAW, "-n", "6", "--json", "-s", "5", "once upon")
    *events, last = map(json.loads, run.out.splitlines())
    assert len(events) == 6 and all(set(e) == {"text", "token_id"} for e in events)
    assert last["finish"] == "length" and last["stats"]["generated_tokens"] == 6
    assert last["stats"]["seed"] == 5 and last["stats"]["decode_rate"] > 0
    text = "".join(e["text"] for e in [*events, last])
    assert wgllm(*RAW, "-n", "6", "-q", "once upon").out.rstrip("\n") == text.rstrip("\n")
    with_logprobs = wgllm(*RAW, "-n", "2", "--json", "--logprobs", "3", "once upon").out.splitlines()
    event = json.loads(with_logprobs[0])
    assert event["logprob"] <= 0 and len(event["top_logprobs"]) == 3
    assert event["top_logprobs"][0]["token_id"] == event["token_id"]


def test_a_full_context_is_told_even_to_the_quiet(wgllm: Wgllm) -> None:
    for n in ("-1", "-2"):
        run = wgllm(*RAW, "-c", "16", "-n", n, "-q", "hi")
        assert run.code == 0 and "the context of 16 tokens is full" in run.err
    # -2 means until the context is full, whatever else is asked for.
    run = wgllm(*RAW, "-c", "16", "-n", "-2", "--context-shift", "hi")
    assert "is full" in run.err and "shifts" not in run.err


def test_a_context_shift_goes_on(wgllm: Wgllm) -> None:
    run = wgllm(*RAW, "-c", "16", "-n", "40", "--context-shift", "--keep", "2", "hi")
    assert "generated 40" in run.err and "context shifts" in run.err and "is full" not in run.err


@pytest.mark.parametrize("model", [(TEXT, "--raw"), (CHAT,)])
def test_a_prompt_that_is_too_long_is_refused_with_a_shift_too(wgllm: Wgllm, model: tuple[str, ...]) -> None:
    run = wgllm("-m", *model, *GREEDY, "-c", "16", "-n", "2", "-q", "--context-shift", "many words " * 20)
    assert run.code == 2 and "a larger one is needed" in run.err and run.err.count("\n") == 1


def test_a_log_takes_any_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    messages = Messages(log_file=str(log), dim=False)
    messages.info("caf\udce9.gguf")
    messages.close()
    assert "caf?.gguf" in log.read_text(encoding="utf-8")


def test_timings_and_messages(wgllm: Wgllm, tmp_path: Path) -> None:
    options = (*RAW, "-n", "2", "hi")
    assert "tok/s" in wgllm(*options).err
    assert "tok/s" not in wgllm(*options, "--no-show-timings").err
    assert wgllm(*options, "-q").err == ""
    assert wgllm(*options, "-q", "--show-timings").err.count("\n") == 1
    log = tmp_path / "log"
    run = wgllm(*options, "-q", "-v", "--log-file", str(log))
    assert run.err == ""
    written = log.read_text(encoding="utf-8")
    assert "tok/s" in written and "temperature" in written
    wgllm(*options, "--log-file", str(log))
    assert log.read_text(encoding="utf-8").startswith(written)
    assert "temperature" in wgllm(*options, "-v").err
    run = wgllm(*options, "--log-file", str(tmp_path / "no" / "log"))
    assert run.code == 2 and run.out == ""


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch, wgllm: Wgllm) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(None, Terminal()) and not wants_colour(None, io.StringIO())
    assert not wants_colour(False, Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(None, Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(None, Terminal())
    options = (*RAW, "-n", "2", "--display-prompt", "hi")
    assert "\x1b" not in "".join(map(str, wgllm(*options)))
    assert "\x1b[33m" in wgllm(*options, "--color").out
    assert "\x1b" not in "".join(map(str, wgllm(*options, "--color", "--simple-io")))


def test_text_can_not_give_a_terminal_orders() -> None:
    assert harmless("a\x1b[2J\x07\x9b1m\u0085\r\x7fb\tc\nd\u202fé") == "a[2J1mb\tc\nd\u202fé"


def test_the_size_of_steps_does_not_change_the_text(wgllm: Wgllm) -> None:
    options = (*RAW, "-n", "8", "-q", "a prompt that has more than a few tokens")
    text = wgllm(*options).out
    for sizes in (("-ub", "1"), ("-ub", "3"), ("-b", "4"), ("-b", "5", "-ub", "500")):
        assert wgllm(*options, *sizes).out == text
    assert wgllm(*options, "-t", "1").out == text


def test_a_prompt_cache_is_used_and_kept(wgllm: Wgllm, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    options = (*RAW, "-n", "5", "--prompt-cache", str(file))
    prompt = "once upon a time there was a fox"
    first = wgllm(*options, prompt)
    assert "cached" not in first.err and file.stat().st_size
    written = file.stat().st_mtime_ns, file.read_bytes()
    again = wgllm(*options, prompt)
    assert again.out == first.out and "cached)" in again.err
    assert (file.stat().st_mtime_ns, file.read_bytes()) == written
    longer = wgllm(*options, "--prompt-cache-ro", prompt + " and a hen")
    assert "cached)" in longer.err and file.read_bytes() == written[1]
    wgllm(*options, "--prompt-cache-all", prompt)
    assert file.stat().st_size > len(written[1])
    refused = wgllm("-m", CHAT, "--prompt-cache", str(file), "hi")
    assert refused.code == 1 and "another model" in refused.err and refused.out == ""
    none = tmp_path / "none"
    assert wgllm(*RAW, "-n", "2", "--prompt-cache", str(none), "--prompt-cache-ro", "hi").code == 0
    assert not none.exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("-i", "-sysf", "-"), "once"),
        (("-sysf", "-", "-f", "-"), "once"),
        (("--out", "x", "hi"), "--prompts"),
        (("--prompts", "x", "hi"), "no other"),
        (("--prompts", "x", "-i"), "-i"),
        (("--prompt-cache-all", "hi"), "--prompt-cache"),
        (("--prompt-cache", "x", "--prompt-cache-all", "--prompt-cache-ro", "hi"), "either"),
        (("--prompt-cache", "nowhere/x.kv", "hi"), "nowhere"),
        (("-sys", "a", "-sysf", "b", "hi"), "either"),
        (("-sys", "a", "--raw", "hi"), "template"),
        (("-i", "-"), "once"),
        (("-n", "-3", "hi"), "-3"),
        (("-p", r"\xff"), "UTF-8"),
        (("",), "no prompt"),
    ],
)
def test_what_does_not_go_together_is_one_line(wgllm: Wgllm, args: tuple[str, ...], says: str) -> None:
    run = wgllm("-m", CHAT, *args)
    assert run.code == 2 and says in run.err and run.err.count("\n") == 1 and run.out == ""


# Signals, in processes of their own.


def start(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "wgllm", "generate", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        **options,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_while_text_is_made_end_it_cleanly(name: str, code: int) -> None:
    process = start(*RAW, "-c", "100000", "hello")
    assert process.stdout is not None and process.stdout.read(5)
    process.send_signal(getattr(signal, name))
    _, messages = process.communicate(timeout=120)
    assert process.returncode == code
    assert b"Traceback" not in messages and b"Error" not in messages


_SLOW_START = """
import sys, time
import wgllm.llm
from wgllm.cli import main

def load(*args, **kwargs):
    try:
        print("loading", flush=True)
        time.sleep(600)
    finally:
        if {stubborn}:
            print("interrupted", flush=True)
            time.sleep(600)

wgllm.llm.load = load
sys.exit(main(["generate", "hi"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("stubborn", [False, True])
def test_ctrl_c_while_loading_ends_it_and_a_second_one_forces(stubborn: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_START.format(stubborn=stubborn)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline() == b"loading\n"
    process.send_signal(signal.SIGINT)
    if stubborn:
        assert process.stdout.readline() == b"interrupted\n"
        process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130 and messages.strip() == b""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_signals_that_are_ignored_stay_so() -> None:
    process = start(*RAW, "-n", "30", "hi", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0


def test_handlers_are_put_back(wgllm: Wgllm) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    wgllm(*RAW, "-n", "1", "-q", "hi")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_may_run_it(wgllm: Wgllm) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["generate", *RAW, "-n", "1", "-q", "hi"])))
    thread.start()
    thread.join()
    assert codes == [0]
