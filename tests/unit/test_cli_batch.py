"""``wgllm generate --prompts``: results in order, errors beside them, runs that are cut and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny
from tests.unit.test_cli_generate import Run
from wgllm.cli import main
from wgllm.llm import Llm

ROOT = Path(__file__).parents[2]
CHAT = str(tiny("qwen2.f32").path)
OTHER = str(tiny("gemma3.f32").path)
OPTIONS = ("-m", CHAT, "-n", "12", "--ignore-eos", "-q")

Batch = Callable[..., Run]


@pytest.fixture
def batch(capfd: pytest.CaptureFixture[str]) -> Batch:
    def run(prompts: Path, *args: str) -> Run:
        capfd.readouterr()
        code = main(["generate", *OPTIONS, "--prompts", str(prompts), *args])
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return run


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def results(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines: list[Any] = [{"id": f"q{i}", "prompt": f"question {i} " * (1 + i % 4)} for i in range(24)]
    lines[5] = {"prompt": 7}
    lines[9] = ""
    return write(tmp_path / "prompts.jsonl", lines)


def test_each_line_has_a_result_with_its_own_options(tmp_path: Path, batch: Batch) -> None:
    lines = [
        {"id": 17, "prompt": "one"},
        {"messages": [{"role": "user", "content": "one"}], "max_tokens": 3},
        {"prompt": "one", "seed": 4, "temperature": 0.5},
        {"prompt": "one", "seed": 4, "temperature": 0.5},
        {"prompt": "one", "seed": 5},
        {"prompt": "one", "temperature": 0},
    ]
    run = batch(write(tmp_path / "p", lines), "-s", "1")
    assert run.code == 0 and run.err == ""
    made = results(run.out)
    assert [r["line"] for r in made] == [1, 2, 3, 4, 5, 6]
    assert made[0]["id"] == 17 and "id" not in made[1]
    assert [r["generated_tokens"] for r in made] == [12, 3, 12, 12, 12, 12]
    assert made[2]["text"] == made[3]["text"] != made[4]["text"]
    assert [r["seed"] for r in made[2:5]] == [4, 4, 5] and made[0]["seed"] != made[1]["seed"]
    assert all(r["finish"] == "length" for r in made)
    stop = made[0]["text"][2:4]
    again = results(batch(write(tmp_path / "q", [{**lines[0], "stop": stop}]), "-s", "1").out)[0]
    assert again["finish"] == "stop" and again["text"] == made[0]["text"].split(stop)[0]


def test_the_command_lines_names_are_understood(tmp_path: Path, batch: Batch) -> None:
    own = [
        {"prompt": "one", "temperature": 0, "max_tokens": 5},
        {"prompt": "one", "seed": 3, "top_k": 9, "max_tokens": 5},
    ]
    others = [{"prompt": "one", "temp": 0, "n": 5}, {"prompt": "one", "s": 3, "top-k": 9, "n_predict": 5}]
    made = [results(batch(write(tmp_path / "p", lines), "-s", "1").out) for lines in (own, others)]
    for one, other in zip(*made, strict=True):
        assert {**one, "hash": ""} == {**other, "hash": ""} and one["generated_tokens"] == 5


def test_a_bias_of_a_line_is_used(tmp_path: Path, batch: Batch) -> None:
    lines = [{"prompt": "x", "temperature": 0, "logit_bias": {"70": 1000}}]
    (made,) = results(batch(write(tmp_path / "p", lines), "-n", "4").out)
    assert len(made["text"]) > 1 and len(set(made["text"])) == 1


def test_tools_reach_the_template(tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    tokens = Llm.chat_tokens

    def with_tools(llm: Llm, messages: Any, *, parse_special: bool = False, tools: Any = None) -> list[int]:
        seen.append(tools)
        return tokens(llm, messages, parse_special=parse_special, tools=tools)

    monkeypatch.setattr(Llm, "chat_tokens", with_tools)
    tools = [{"type": "function", "function": {"name": "clock"}}]
    run = batch(write(tmp_path / "p", [{"prompt": "x", "tools": tools}, {"prompt": "x"}]))
    assert run.code == 0 and seen == [tools, None]


@pytest.mark.parametrize(
    "change",
    [
        ("-s", "2"),
        ("--temp", "0.3"),
        ("-sys", "Be brief."),
        ("--raw",),
        ("-n", "3"),
        ("-m", OTHER),
        ("prompts",),
    ],
)
def test_results_of_other_settings_or_prompts_are_not_gone_on_with(
    tmp_path: Path, batch: Batch, change: tuple[str, ...]
) -> None:
    path, out = write(tmp_path / "p", [{"prompt": "one"}, {"prompt": "two"}]), tmp_path / "out"
    assert batch(path, "-s", "1", "--out", str(out)).code == 0
    data = out.read_bytes()[: out.read_bytes().index(b"\n") + 1]
    out.write_bytes(data)
    if change == ("prompts",):
        write(path, [{"prompt": "another"}, {"prompt": "two"}])
        change = ()
    run = batch(path, "-s", "1", "--out", str(out), *change)
    assert run.code == 2 and "another prompt, model or settings" in run.err and run.err.count("\n") == 1
    assert out.read_bytes() == data


def test_the_system_prompt_comes_before_all_that_have_none(tmp_path: Path, batch: Batch) -> None:
    def ask(system: str) -> dict[str, Any]:
        return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": "x"}]}

    path = write(tmp_path / "p", [{"prompt": "x"}, ask("Be brief."), ask("another one")])
    made = results(batch(path, "-sys", r"Be\x20brief.", "--temp", "0").out)
    assert made[0]["text"] == made[1]["text"] != made[2]["text"]
    assert made[0]["prompt_tokens"] == made[1]["prompt_tokens"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": "x", "temperature": NaN}', "NaN"),
        ("[1]", "no JSON object"),
        ({}, "either prompt or messages"),
        ({"prompt": "x", "messages": []}, "either prompt or messages"),
        ({"prompt": ["x"]}, "no text"),
        ({"messages": "x"}, "messages"),
        ({"messages": [7]}, "role"),
        ({"messages": [{"role": "user", "content": 7}]}, "content"),
        ({"prompt": "x", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "seed": 1.5}, "seed"),
        ({"prompt": "x", "samplers": 5}, "sampl"),
        ({"prompt": "x", "logit_bias": [1]}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"one": 1}}, "'one' is no token id"),
        ({"prompt": "x", "logit_bias": {"1": "much"}}, "logit_bias"),
        ({"prompt": "x", "tempreature": 0}, "'tempreature'"),
        ({"prompt": "x", "temp": 0, "temperature": 1}, "temperature is given twice"),
        ({"prompt": "x", "ignore_eos": "false"}, "ignore_eos"),
        ({"prompt": "x", "stop": ""}, "stop"),
        ({"prompt": "x", "stop": ["a", ""]}, "stop"),
        ({"prompt": "x", "tools": "all"}, "tools"),
        ({"prompt": "x", "stop": 5}, "stop"),
        ({"prompt": "x " * 600}, "context"),
    ],
)
def test_a_bad_line_has_its_error_and_the_others_run(
    tmp_path: Path, batch: Batch, line: Any, says: str
) -> None:
    run = batch(write(tmp_path / "p", [line, {"prompt": "fine", "max_tokens": 1}]))
    assert run.code == 1
    bad, good = results(run.out)
    assert says in bad["error"] and "text" not in bad
    assert good["finish"] == "length"


@pytest.mark.parametrize("cut", [1, 30, 0])
def test_a_run_that_was_cut_gives_the_same_bytes(
    tmp_path: Path, batch: Batch, prompts: Path, cut: int
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert batch(prompts, "--out", str(whole), "-s", "3").code == 1
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    assert len(lines) == 23 and [json.loads(line)["line"] for line in lines[8:10]] == [9, 11]
    for n in (0, 1, 7, 22):
        out.write_bytes(b"".join(lines[:n]) + lines[n][:cut])
        assert batch(prompts, "--out", str(out), "-s", "3").code == 1
        assert out.read_bytes() == data
    # Nothing is left to do, and the exit code still tells of the error.
    assert batch(prompts, "--out", str(out), "-s", "3").code == 1
    assert out.read_bytes() == data


# Stops when so many lines are there: who kills it may come late, but not too late.
_STOPS = """
import sys, time
from pathlib import Path
from wgllm.cli import main
from wgllm.engine import Engine

out, lines, step = Path(sys.argv[1]), int(sys.argv[2]), Engine.step

def until_then(engine):
    if out.exists() and out.read_bytes().count(b"\\n") >= lines:
        time.sleep(600)
    return step(engine)

Engine.step = until_then
sys.exit(main(sys.argv[3:]))
"""


def test_a_run_that_was_killed_goes_on(tmp_path: Path, batch: Batch, prompts: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    batch(prompts, "--out", str(whole), "-s", "3")
    options = ["generate", *OPTIONS, "--prompts", str(prompts), "-s", "3", "--out", str(out)]
    for wanted in (1, 6, 12):
        process = subprocess.Popen(
            [sys.executable, "-c", _STOPS, str(out), str(wanted + 2), *options],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not (out.exists() and out.read_bytes().count(b"\n") >= wanted):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.wait()
        left = out.read_bytes()
        assert wanted <= left.count(b"\n") <= wanted + 2
        assert whole.read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    batch(prompts, "--out", str(out), "-s", "3")
    assert out.read_bytes() == whole.read_bytes()


def test_a_shared_beginning_is_reused_without_changing_a_byte(tmp_path: Path, batch: Batch) -> None:
    system = "You answer in one word, and never in two. " * 3
    path = write(tmp_path / "p", [{"prompt": f"question {i}"} for i in range(6)])
    out = tmp_path / "out"
    batch(path, "-sys", system, "-s", "1", "-ub", "16", "--out", str(out))
    lines = out.read_bytes().splitlines(keepends=True)
    for n in range(6):
        out.write_bytes(b"".join(lines[:n]))
        batch(path, "-sys", system, "-s", "1", "-ub", "16", "--out", str(out))
        assert out.read_bytes().splitlines(keepends=True) == lines


@pytest.mark.parametrize(
    "there",
    [
        '{"line": 2}\n',
        '{"line": 1, "id": "q7"}\n',
        "notes\n",
        "[" * 10_000 + "\n",
        '{"line": 1}\n\n',
        '{"line": "1"}\n',
    ],
)
def test_a_file_that_holds_something_else_is_left_alone(
    tmp_path: Path, batch: Batch, prompts: Path, there: str
) -> None:
    out = tmp_path / "out"
    out.write_text(there, encoding="utf-8")
    run = batch(prompts, "--out", str(out))
    assert run.code == 2 and "no result of line" in run.err and run.err.count("\n") == 1
    assert out.read_text(encoding="utf-8") == there


def test_results_of_more_lines_than_there_are_prompts_are_left_alone(tmp_path: Path, batch: Batch) -> None:
    out = tmp_path / "out"
    out.write_text('{"line": 1}\n{"line": 2}\n', encoding="utf-8")
    assert batch(write(tmp_path / "p", [{"prompt": "x"}]), "--out", str(tmp_path)).code == 2
    assert batch(write(tmp_path / "p", [{"prompt": "x"}]), "--out", str(out)).code == 2


@pytest.mark.parametrize(("text", "says"), [("", "no prompts"), ("\n \n", "no prompts")])
def test_a_file_without_prompts_is_refused(tmp_path: Path, batch: Batch, text: str, says: str) -> None:
    (tmp_path / "p").write_text(text, encoding="utf-8")
    run = batch(tmp_path / "p")
    assert run.code == 2 and says in run.err


def test_files_that_can_not_be_used_are_one_line(tmp_path: Path, batch: Batch, prompts: Path) -> None:
    for run in (batch(tmp_path / "none"), batch(prompts, "--out", str(tmp_path / "no" / "out"))):
        assert run.code == 2 and run.err.count("\n") == 1 and run.out == ""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert "UTF-8" in batch(tmp_path / "bytes").err


def test_a_full_disk_is_one_line(
    tmp_path: Path, batch: Batch, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run = batch(prompts, "--out", str(tmp_path / "out"))
    assert run.code == 1 and "No space left" in run.err and run.err.count("\n") == 1


def test_a_seed_of_its_own_for_each_line(tmp_path: Path, batch: Batch) -> None:
    path = write(tmp_path / "p", [{"prompt": "x"}, {"prompt": "x"}])
    one, other = results(batch(path, "-s", "1").out)
    assert one["text"] != other["text"]
    assert results(batch(path, "-s", "1").out) == [one, other]
    assert results(batch(path, "-s", "2").out)[0]["text"] != one["text"]
