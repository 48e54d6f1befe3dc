"""``wgllm check`` and ``generate --check``: what they tell, report and end with; and checks of steps as they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.kernels.test_check import CASES, MODEL, breaking
from tests.tiny import load_program
from wgllm import check_cases
from wgllm.backends import numpy as kernels
from wgllm.backends.base import Step
from wgllm.backends.segments import Pipeline
from wgllm.check import Verdict, watch
from wgllm.cli import check as check_cli
from wgllm.cli import main
from wgllm.errors import MismatchError
from wgllm.formats.gguf import open_gguf

# While generating


@pytest.fixture
def watched() -> Any:
    program = load_program(MODEL, largest_step=16)
    pipeline, verdicts = Pipeline([program]), list[Verdict]()
    with open_gguf(MODEL) as file:
        watch(pipeline, file.tensors, verdicts.append)
        yield pipeline, verdicts
    pipeline.close()


def test_a_pipeline_checks_its_steps(watched: tuple[Pipeline, list[Verdict]]) -> None:
    pipeline, verdicts = watched
    pipeline.run(Step.of(range(1, 17), 0))
    pipeline.run(Step.of([3], 16, out_rows=[0]))
    saved = pipeline.save_state(0)
    pipeline.truncate(0, 10)
    pipeline.run(Step.of([7, 8, 9], 10, out_rows=[0, 2]))
    pipeline.load_state(0, saved, 17, {})
    pipeline.run(Step.of([7], 17, out_rows=[0]))
    pipeline.wipe(0)
    pipeline.run(Step.of([7, 8], 0, out_rows=[1]))
    assert len(verdicts) == 5 * sum(len(node.outputs) for node in pipeline.programs[0].graph.nodes)


def test_a_step_that_was_given_up_is_no_mismatch(watched: tuple[Pipeline, list[Verdict]]) -> None:
    pipeline, _ = watched
    pipeline.run(Step.of(range(1, 17), 0))
    for after in range(1, 20):
        calls = iter(range(after))

        def interrupt(calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipeline.run(Step.of([after] * 9, 16), interrupt=interrupt)
        pipeline.truncate(0, 16)
        pipeline.run(Step.of([2], 16, out_rows=[0]))
        pipeline.truncate(0, 16)


def test_the_first_node_that_differs_ends_the_step(
    watched: tuple[Pipeline, list[Verdict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, verdicts = watched
    silu = kernels.silu
    monkeypatch.setitem(kernels.KERNELS, "silu", lambda x: silu(x) * np.float32(1.0001))
    with pytest.raises(
        MismatchError, match=r"^layer 0: gated .* of \[2, .*\], .* differs from NumPy: error"
    ) as raised:
        pipeline.run(Step.of([1, 2], 0, out_rows=[1]))
    assert raised.value.exit_code == 1 and verdicts[-1].op == "gated"


def test_context_shifts_and_prefixes_are_watched() -> None:
    with wgllm.load(MODEL, backend="numpy", ctx_size=64, batch_size=16) as llm:
        verdicts: list[Verdict] = []
        with open_gguf(MODEL) as file:
            watch(llm.engine.pipeline, file.tensors, verdicts.append)  # type: ignore[attr-defined]
            for prompt in (range(1, 40), range(1, 30), range(5, 9)):
                list(llm.generate(list(prompt), max_tokens=5, ignore_eos=True))
        assert len(verdicts) > 500


# The command


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [CASES["format Q4_0"], CASES["elements of one row"]]
    monkeypatch.setattr(check_cases, "kernel_cases", lambda: iter(some))


@pytest.mark.usefixtures("gpu", "few_cases")
def test_the_command_tells_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert main(["check", "-m", str(MODEL), "--report", str(report)]) == 0
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["embed", "Q4_0", "3"] in [line[:3] for line in lines]
    assert ["attention", "f32"] in [line[:2] for line in lines]
    assert "DIFFER" not in shown.out and shown.err.startswith("checking ")
    facts = json.loads(report.read_text(encoding="utf-8"))
    assert facts["ok"] and facts["first_failure"] is None and facts["problems"] == []
    assert facts["wgllm"] == wgllm.__version__ and facts["wgpu"] and facts["python"] and facts["system"]
    assert facts["adapter"]["device"] and facts["adapter"]["opened"]["limits"]["max-buffer-size"]
    assert facts["model"]["architecture"] == "qwen2" and facts["model"]["file"] == MODEL.name
    assert len(facts["verdicts"]) == facts["checks"] == sum(row["checks"] for row in facts["summary"])


@pytest.mark.usefixtures("gpu", "few_cases")
def test_the_command_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(
        monkeypatch,
        "kernels/elementwise.wgsl",
        "a[i] * b[i]",
        "bitcast<f32>(u32(a[i] * b[i] * 0.0) | 0x7fc00000u)",
    )
    report = tmp_path / "report.json"
    assert main(["check", "--json", "--report", str(report)]) == 1
    shown = capsys.readouterr()
    line = shown.err.splitlines()[-1]
    assert line.startswith("wgllm: elements of one row: mul product of [1, 257], [1, 257] → [1, 257] differs")
    facts = json.loads(shown.out)
    assert facts == json.loads(report.read_text(encoding="utf-8"))
    first = facts["first_failure"]
    assert not facts["ok"]
    assert (first["op"], first["got"], first["error"]) == ("mul", "nan", "inf")


@pytest.mark.usefixtures("gpu", "few_cases")
def test_a_shader_that_does_not_compile_is_in_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(monkeypatch, "kernels/elementwise.wgsl", "a[i] * b[i]", "nothing")
    assert main(["check", "--json"]) == 1
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert (
        facts["problems"][0]["case"] == "elements of one row" and "nothing" in facts["problems"][0]["problem"]
    )
    assert any(v["case"] == "format Q4_0" for v in facts["verdicts"])
    assert "elements of one row could not be run: shader kernels/elementwise.wgsl" in shown.err


def test_no_adapter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check_cli, "find_adapters", lambda: ([], "no driver shows one"))
    assert main(["check"]) == 5
    assert capsys.readouterr() == ("", "wgllm: no graphics card: no driver shows one\n")


@pytest.mark.usefixtures("gpu", "few_cases")
def test_other_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--device", "no such card"]) == 2
    assert main(["check", "--report", str(tmp_path / "none" / "report.json")]) == 2
    assert main(["check", "-m", str(tmp_path / "none.gguf")]) == 3

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wgllm.check.check_case", interrupted)
    assert main(["check"]) == 130


@pytest.mark.usefixtures("gpu")
def test_generate_checks_what_the_gpu_makes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "-m", str(MODEL), "--backend", "webgpu", "--device", "0", "--raw", "--temp", "0"]
    arguments += ["-n", "3", "-ub", "2", "--check", "hello there, a prompt of several steps"]
    assert main(arguments) == 0
    assert "results of nodes are as NumPy makes them" in capsys.readouterr().err
    breaking(monkeypatch, "kernels/rope_write.wgsl", "turns[p * HALF", "turns[(p + 1u) * HALF")
    assert main(arguments) == 1
    assert "wgllm: layer 0: rope_write f32 " in capsys.readouterr().err


def test_generate_checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "generate",
        "-m",
        str(MODEL),
        "--backend",
        "numpy",
        "--raw",
        "-n",
        "4",
        "--temp",
        "0",
        "hello",
    ]
    assert main(arguments) == 0
    plain = capsys.readouterr()
    assert main([*arguments, "--check"]) == 0
    shown = capsys.readouterr()
    assert shown.out == plain.out and "results of nodes are as NumPy makes them" in shown.err
    silu = kernels.silu
    monkeypatch.setitem(kernels.KERNELS, "silu", lambda x: silu(x) * np.float32(1.0001))
    assert main([*arguments, "--check"]) == 1
    assert "wgllm: layer 0: gated" in capsys.readouterr().err
