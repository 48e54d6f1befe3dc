"""``wgllm check``: its cases pass on the adapter and cover every shader, and whatever is wrong is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.gpu import Gpu
from tests.tiny import tiny
from wgllm import lowering, models
from wgllm.backends.base import Array, Ints, LoadOptions, Trace
from wgllm.backends.numpy_program import NumpyExecutor, NumpyProgram
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.cache import cell_counts
from wgllm.check import REPLAY, TOLERANCES, NodeChecker, Verdict, check_case, check_model, run_checked
from wgllm.check_cases import Case, kernel_cases
from wgllm.formats.gguf import open_gguf
from wgllm.graph import Node
from wgllm.kv_types import KV_TYPES
from wgllm.ops import OPS
from wgllm.quant import all_formats
from wgllm.wgsl import compose

CASES = {case.name: case for case in kernel_cases()}
MODEL = tiny("qwen2.f32").path


def failures(verdicts: list[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if not v.ok]


def check_file(executor: WebGpuExecutor | NumpyExecutor, path: Path, **options: Any) -> list[Verdict]:
    verdicts: list[Verdict] = []
    with open_gguf(path) as file:
        built = models.build(file)
        sizes = cell_counts(built.graph.windows, 512, 33, slots=1)
        program = executor.load(
            built.graph, file.tensors, LoadOptions(sizes, largest_step=33, ctx_size=512, **options)
        )
        try:
            check_model(program, file.tensors, built.config.vocab_size, verdicts.append)
        finally:
            program.close()
    return verdicts


# What is right passes


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels(gpu: Gpu, case: Case) -> None:
    verdicts = check_case(WebGpuExecutor(gpu.device), case)
    assert len(verdicts) > len(case.graph.nodes) * (len(case.steps) - 1)
    assert not failures(verdicts)
    # Rounding shows: something was compared, and with what the device made.
    assert any(v.error for v in verdicts) or {v.op for v in verdicts if TOLERANCES[v.op]} <= {"add", "mul"}


@pytest.mark.parametrize(
    ("name", "kv_type"), [("gemma3.f32", "q8_0"), ("qwen2.f32", "f16"), ("llama-q.q4_k_s", "q4_0")]
)
def test_models(gpu: Gpu, name: str, kv_type: str) -> None:
    verdicts = check_file(WebGpuExecutor(gpu.device), tiny(name).path, kv_type=kv_type)
    assert not failures(verdicts)
    assert {v.layer for v in verdicts} >= {None, 0}
    assert any(v.op == "kv_write" and v.format == kv_type for v in verdicts)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["gemma3.f32", "qwen2.f32", "llama-q.q6_k"])
def test_fused_nodes_of_numpy_are_their_bodies(
    name: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setenv("WGLLM_FUSE", "0")
    verdicts = check_file(NumpyExecutor(), tiny(name).path)
    assert not failures(verdicts)
    assert fused == any(OPS[v.op].fused for v in verdicts if v.op in OPS)


def test_a_tail_that_runs_in_parts(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "_LOGITS_BYTES", 4 * 33 * 4)
    case = CASES["selected rows"]
    verdicts = check_case(WebGpuExecutor(gpu.device), case)
    assert [v.output[0] for v in verdicts if v.op == "select_rows"][:9] == [4, 4, 4, 4, 4, 4, 4, 4, 1]
    assert not failures(verdicts)


# Nothing is left out


def test_cases_cover_every_operator_format_and_kv_type() -> None:
    nodes = [(case, node) for case in CASES.values() for node in case.graph.nodes]
    assert {node.op for _, node in nodes} == set(lowering._SHADERS)
    assert set(TOLERANCES) >= set(lowering._SHADERS) | {name for name, op in OPS.items() if op.fused}
    formats = {f.name for f in all_formats()}
    for op, weight in (("embed", 0), ("matmul", 1)):
        read = {case.graph.tensors[n.inputs[weight]].dtype for case, n in nodes if n.op == op}
        assert read == formats
    for op in ("kv_write", "attn_scores", "attn_values"):
        state = 0 if op == "kv_write" else 1
        assert {case.options.kv_type_of(n.inputs[state]) for case, n in nodes if n.op == op} == set(KV_TYPES)


def test_every_format_has_products_of_few_rows_and_tiled_ones() -> None:
    kinds = set()
    for case in CASES.values():
        plan = lowering.lower(
            case.graph,
            lowering.PlanOptions(
                case.options.sizes, case.options.positions, case.options.largest_step, case.options.kv_type_of
            ),
        )
        for inputs in case.steps:
            plan.schedule("body", len(inputs["pos"]))
        kinds |= {k.source.name for k in plan.kernels if k.entry in ("matvec", "matmul")}
    assert kinds == {f"kernels/{k}.wgsl + {f.wgsl}" for k in ("matvec", "matmul") for f in all_formats()}


def test_cases_are_the_same_every_time() -> None:
    for case in kernel_cases():
        again = CASES[case.name]
        assert case.graph == again.graph
        for one, other in zip(case.steps, again.steps, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one)
        for name, view in case.weights.items():
            assert np.array_equal(view.data, again.weights[name].data)


# What is wrong is named


def breaking(monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str) -> None:
    """Every shader that is composed from now on has ``new`` in place of ``old``, where ``file`` is part of it."""

    def composed(*names: str, **options: Any) -> Any:
        source = compose(*names, **options)
        if file not in names:
            return source
        assert old in source.text
        return replace(source, text=source.text.replace(old, new))

    monkeypatch.setattr(lowering, "compose", composed)


@pytest.mark.parametrize(
    ("op", "file", "old", "new"),
    [
        ("matmul", "kernels/matvec.wgsl", "sum += dot_group(", "sum += 1.0003 * dot_group("),
        ("matmul", "kernels/matvec.wgsl", "let groups = INPUTS / 32u;", "let groups = INPUTS / 32u - 1u;"),
        ("rms_norm", "kernels/rms_norm.wgsl", "mean_square + EPS", "mean_square + 3.0 * EPS"),
        ("rope", "kernels/rope.wgsl", "pos[", "1 + pos["),
        ("mask", "kernels/mask.wgsl", "<= pos[", "< pos["),
        ("softmax", "kernels/softmax.wgsl", "exp(", "exp(0.99999 * "),
        ("attn_scores", "kernels/attn_scores.wgsl", "i % SEEN", "(i + 1u) % SEEN"),
        ("cell_write", "kernels/cell_write.wgsl", "= pos[r]", "= pos[r] + 1"),
        ("silu", "kernels/elementwise.wgsl", "safe_silu(a[i])", "0.99999 * safe_silu(a[i])"),
        (
            "silu",
            "kernels/elementwise.wgsl",
            "safe_silu(a[i])",
            "bitcast<f32>(u32(a[i] * 0.0) | 0x7fc00000u)",
        ),
        (
            "silu",
            "kernels/elementwise.wgsl",
            "safe_silu(a[i])",
            "bitcast<f32>(u32(a[i] * 0.0) | 0x7f800000u)",
        ),
        ("add", "kernels/elementwise.wgsl", "a[i] + b[i];", "a[i] + b[i] + 1e-6;"),
    ],
)
def test_a_wrong_shader_is_named(
    gpu: Gpu, op: str, file: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, file, old, new)
    verdicts = check_file(WebGpuExecutor(gpu.device), MODEL)
    wrong = failures(verdicts)
    assert wrong and {v.op for v in wrong} == {op}
    assert wrong[0].index is not None and wrong[0].error > wrong[0].tolerance


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_kv_write_that_rounds_down_is_named(
    gpu: Gpu, kv_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = ("whole + trunc(2.0 * (scaled - whole))", "whole") if kv_type == "q8_0" else ("+ 8.5", "+ 8.0")
    breaking(monkeypatch, "kernels/kv_write_quantized.wgsl", old, new)
    name = "attention q8_0 9/3×32" if kv_type == "q8_0" else "attention q4_0 9/3×64"
    wrong = failures(check_case(WebGpuExecutor(gpu.device), CASES[name]))
    assert wrong and {v.op for v in wrong} == {"kv_write"}


class Wrong:
    """A NumPy program whose trace shows something else than it made."""

    def __init__(self, program: NumpyProgram, change: Callable[[Node, dict[str, Any]], None]) -> None:
        self.program = program
        self.graph, self.options = program.graph, program.options
        self.change = change

    def run(
        self, inputs: Mapping[str, Array | Ints], *, trace: Trace | None = None, **_: Any
    ) -> dict[str, Array]:
        def shown(node: Node, made: Mapping[str, Array | Ints]) -> None:
            changed: dict[str, Any] = {name: value.copy() for name, value in made.items()}
            self.change(node, changed)
            assert trace is not None
            trace(node, changed)

        return self.program.run(inputs, trace=None if trace is None else shown)


def check_wrong(
    change: Callable[[Node, dict[str, Any]], None], case: Case | None = None
) -> tuple[Verdict, list[Verdict]]:
    """The first verdict that is not ok, of a textbook run of a case; and all of them."""
    case = case or CASES["attention f32 9/3×4"]
    program = NumpyExecutor().load(case.graph, case.weights, case.options)
    verdicts: list[Verdict] = []
    checker = NodeChecker(program.graph, case.weights, program.options, verdicts.append)
    wrong = Wrong(program, change)
    for inputs in case.steps:
        checker.begin(inputs)
        wrong.run(inputs, trace=checker)
    return failures(verdicts)[0], verdicts


@pytest.fixture
def textbook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGLLM_FUSE", "0")


@pytest.mark.usefixtures("textbook")
def test_the_worst_element_is_told() -> None:
    def change(node: Node, made: dict[str, Any]) -> None:
        if node.outputs == ("cells.values",):
            made["cells.values"][-1, 5, 2] += 7

    first, _ = check_wrong(change)
    assert (first.op, first.name, first.format) == ("attn_values", "cells.values", "f32")
    assert first.index == (6, 5, 2) and first.output == (7, 9, 4)
    assert first.got is not None and first.want is not None and first.got - first.want == pytest.approx(7)
    text = str(first)
    assert "attn_values f32 cells.values of [7, 9, 31], [3, 3, 31, 4], [7] → [7, 9, 4] differs" in text
    assert "at [6, 5, 2]" in text and "\n" not in text


@pytest.mark.usefixtures("textbook")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found(value: float) -> None:
    def change(node: Node, made: dict[str, Any]) -> None:
        if node.outputs == ("cells.scaled",):
            made["cells.scaled"][0, 0, 0] = value

    first, _ = check_wrong(change)
    assert (first.op, first.index, first.error) == ("scale", (0, 0, 0), math.inf)


@pytest.mark.usefixtures("textbook")
def test_another_shape_is_found() -> None:
    def change(node: Node, made: dict[str, Any]) -> None:
        if node.op == "attn_values":
            made[node.outputs[0]] = made[node.outputs[0]][:-1]

    first, _ = check_wrong(change)
    assert first.op == "attn_values" and "another shape" in str(first)


@pytest.mark.usefixtures("textbook")
def test_what_a_node_must_not_touch_is_looked_at() -> None:
    def change(node: Node, made: dict[str, Any]) -> None:
        if node.outputs == ("cells.k.state",):
            made["cells.k.state"][2, 1, 30, 3] = 1e-3

    first, _ = check_wrong(change)
    assert (first.op, first.name, first.index) == ("kv_write", "cells.k.state", (2, 1, 30, 3))

    def move(node: Node, made: dict[str, Any]) -> None:
        if node.outputs == ("cells.w5.pos",):
            made["cells.w5.pos"][1, 0] = 99

    first, _ = check_wrong(move)
    assert (first.op, first.name, first.index) == ("cell_write", "cells.w5.pos", (1, 0))


@pytest.mark.usefixtures("textbook")
def test_scores_may_leave_out_cells_only_while_nothing_is_in_them() -> None:
    def shortened(seen: int) -> Callable[[Node, dict[str, Any]], None]:
        def change(node: Node, made: dict[str, Any]) -> None:
            name = node.outputs[0]
            if name in ("cells.scores", "cells.scaled", "cells.masked", "cells.p"):
                made[name] = made[name][..., :seen]

        return change

    first, verdicts = check_wrong(shortened(9))
    assert first.op == "mask" and first.index is not None and first.index[-1] >= 9
    assert all(v.ok for v in verdicts[: verdicts.index(first)])
    with pytest.raises(IndexError):  # no verdict is bad: no slot holds more positions
        check_wrong(shortened(20))


def test_a_step_in_one_go_must_be_the_same_as_node_by_node() -> None:
    class Hasty(Wrong):
        def run(self, inputs: Any, *, trace: Trace | None = None, **options: Any) -> dict[str, Array]:
            made = super().run(inputs, trace=trace)
            return made if trace is not None else {name: a + np.float32(1e-3) for name, a in made.items()}

    case = CASES["far elements"]
    program = NumpyExecutor().load(case.graph, case.weights, case.options)
    verdicts: list[Verdict] = []
    checker = NodeChecker(program.graph, case.weights, program.options, verdicts.append)
    run_checked(Hasty(program, lambda node, made: None), checker, case.steps[0])  # type: ignore[arg-type]
    wrong = failures(verdicts)
    assert [v.op for v in wrong] == [REPLAY] * len(case.graph.nodes)
    assert "replay scaled of [19], [19], [19, 1] → [19, 1] differs from the same step node by node" in str(
        wrong[0]
    )
