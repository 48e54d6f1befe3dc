"""``wgllm check``: its cases pass on the adapter and cover every shader, and whatever is wrong is named."""

from __future__ import annotations

import functools
import importlib.resources
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.gpu import Gpu
from tests.tiny import tiny
from wgllm import check, lowering, models
from wgllm.backends.base import Array, Ints, LoadOptions, Trace
from wgllm.backends.device import Device
from wgllm.backends.numpy_program import NumpyExecutor, NumpyProgram
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.cache import cell_counts
from wgllm.check import REPLAY, TOLERANCES, NodeChecker, Verdict, check_case, check_model, run_checked
from wgllm.check_cases import Case, kernel_cases
from wgllm.formats.gguf import open_gguf
from wgllm.graph import Graph, Node
from wgllm.kv_types import KV_TYPES
from wgllm.ops import OPS
from wgllm.plan import Kernel
from wgllm.quant import all_formats
from wgllm.wgsl import compose, shader_file

CASES = {case.name: case for case in kernel_cases()}
MODEL = tiny("qwen2.f32").path
# Of no plan yet. What sums over subgroups is for cards, on which it has not been measured.
UNUSED = {"lanes/sums_subgroups.wgsl"}
# No node of a graph: tests/kernels/test_sampling.py has them.
SAMPLING = {
    *(
        f"kernels/{name}.wgsl"
        for name in ("best_candidates", "draw_token", "greedy_token", "largest_candidate")
    ),
    *(
        f"lib/{name}.wgsl"
        for name in ("candidates", "largest_candidate", "philox", "sorted_candidates", "take_token")
    ),
}
# What a device is taken for, whichever it is: that decides which kernels it gets.
SOFTWARE, SHARED, CARD = "software", "software with subgroups", "card"
TARGETS: dict[str, dict[str, Any]] = {
    SOFTWARE: {"software": True, "subgroup": 0},
    SHARED: {"software": True, "subgroup": 8},
    CARD: {"software": False, "subgroup": 0},
}


def failures(verdicts: list[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if not v.ok]


def taken_for(device: Device, kind: str) -> WebGpuExecutor:
    return WebGpuExecutor(replace(device, adapter=replace(device.adapter, kind=kind)))


@pytest.fixture
def executors(request: pytest.FixtureRequest) -> Callable[[str], WebGpuExecutor]:
    """By SOFTWARE, SHARED or CARD, on the device that there is."""

    def executor(target: str) -> WebGpuExecutor:
        gpu: Gpu = request.getfixturevalue("subgroup_gpu" if target == SHARED else "gpu")
        return taken_for(gpu.device, "discrete" if target == CARD else "software")

    return executor


@pytest.fixture
def textbook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGLLM_FUSE", "0")


def check_file(executor: WebGpuExecutor | NumpyExecutor, path: Path, **options: Any) -> list[Verdict]:
    verdicts: list[Verdict] = []
    with open_gguf(path) as file:
        built = models.build(file)
        sizes = cell_counts(built.graph.windows, 512, 33, slots=1)
        program = executor.load(
            built.graph, built.weights, LoadOptions(sizes, largest_step=33, ctx_size=512, **options)
        )
        try:
            check_model(program, built.weights, built.config.vocab_size, verdicts.append)
        finally:
            program.close()
    return verdicts


def prepared(case: Case) -> Graph:
    return lowering.prepared(case.graph, attention=case.options.fused_attention)


@functools.cache
def kernels_of(name: str, target: str) -> list[Kernel]:
    """All that a run of a case takes."""
    case = CASES[name]
    options = case.options
    plan = lowering.lower(
        prepared(case),
        lowering.PlanOptions(
            options.sizes, options.positions, options.largest_step, options.kv_type_of, **TARGETS[target]
        ),
    )
    for inputs in case.steps:
        plan.schedule("body", len(inputs["pos"]), int(inputs["pos"].max()) + 1)
        if "out_rows" in inputs:
            plan.schedule("tail", len(inputs["out_rows"]))
    return plan.kernels


def texts_of(case: Case, target: str) -> list[str]:
    return [kernel.source.text for kernel in kernels_of(case.name, target)]


# What is right passes


def check_right(executor: WebGpuExecutor, case: Case) -> None:
    verdicts = check_case(executor, case)
    graph = executor.prepared(case.graph, case.options)
    # Each result of each node, and the outputs of the same step in one go.
    made = sum(len(node.outputs) for node in graph.nodes) + len(list(graph.of_kind("output")))
    assert len(verdicts) == len(case.steps) * made
    assert not failures(verdicts)
    # Rounding shows: something was compared, and with what the device made.
    assert any(v.error for v in verdicts) or {v.op for v in verdicts if TOLERANCES[v.op]} <= {"add", "mul"}


def worth_running(case: Case, target: str) -> bool:
    """What is large is for cards; what has the same kernels as on software without subgroups has run there."""
    if any(math.prod(weight.shape) >= 1 << 18 for weight in case.weights.values()):
        return target == CARD
    if target == SHARED and not case.name.startswith(
        ("format", "layer Q", "layer of K", "layer of experts, Q")
    ):
        return False
    return target == SOFTWARE or texts_of(case, target) != texts_of(case, SOFTWARE)


RUNS = [
    pytest.param(target, case, id=f"{case.name}-{target}")
    for target in TARGETS
    for case in CASES.values()
    if worth_running(case, target)
]


@pytest.mark.parametrize(("target", "case"), RUNS)
def test_kernels(executors: Callable[[str], WebGpuExecutor], target: str, case: Case) -> None:
    check_right(executors(target), case)


@pytest.mark.usefixtures("textbook")
@pytest.mark.parametrize(
    ("target", "name"),
    [
        (SOFTWARE, "attention q8_0 and f16"),
        (SOFTWARE, "long context"),
        (SOFTWARE, "layer Q4_0"),
        (SOFTWARE, "layer of odd width"),
        (SOFTWARE, "layer of K-quants with norms"),
        (CARD, "layer Q8_0 with biases"),
    ],
)
def test_textbook_kernels(executors: Callable[[str], WebGpuExecutor], target: str, name: str) -> None:
    executor, case = executors(target), CASES[name]
    assert executor.prepared(case.graph, case.options).nodes == case.graph.nodes
    check_right(executor, case)


@pytest.mark.parametrize(
    ("target", "name", "kv_type"),
    [
        (SOFTWARE, "gemma3.f32", "q8_0"),
        (SOFTWARE, "qwen2.f32", "f16"),
        (SOFTWARE, "llama-q.q4_k_s", "q4_0"),
        (CARD, "qwen2.f32", "f16"),
    ],
)
def test_models(executors: Callable[[str], WebGpuExecutor], target: str, name: str, kv_type: str) -> None:
    verdicts = check_file(executors(target), tiny(name).path, kv_type=kv_type)
    assert not failures(verdicts)
    assert {v.layer for v in verdicts} >= {None, 0}
    ops = {v.op for v in verdicts}
    assert ops >= {"norm_matmul", "rope_write", "attention", "norm_gated"} and ops.isdisjoint(
        {"kv_write", "rope"}
    )
    assert {v.format for v in verdicts if v.op in ("rope_write", "attention")} == {kv_type}


@pytest.mark.usefixtures("textbook")
def test_a_textbook_model(executors: Callable[[str], WebGpuExecutor]) -> None:
    verdicts = check_file(executors(SOFTWARE), MODEL, kv_type="f16")
    assert not failures(verdicts)
    assert not any(OPS[v.op].fused for v in verdicts if v.op in OPS)
    assert any(v.op == "kv_write" and v.format == "f16" for v in verdicts)


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


def test_a_tail_that_runs_in_parts(
    executors: Callable[[str], WebGpuExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "_LOGITS_BYTES", 4 * 33 * 4)
    case = CASES["selected rows"]
    verdicts = check_case(executors(SOFTWARE), case)
    assert [v.output[0] for v in verdicts if v.op == "select_rows"][:9] == [4, 4, 4, 4, 4, 4, 4, 4, 1]
    assert not failures(verdicts)


# Nothing is left out


# By operator, which of its inputs are KV states.
STATES = {
    "kv_write": [0],
    "attn_scores": [1],
    "attn_values": [1],
    "attention": [1, 2],
    "rope_write": [1, 2],
}


def test_cases_cover_every_operator_format_and_kv_type(gpu: Gpu) -> None:
    executor = WebGpuExecutor(gpu.device)
    nodes = [(c, node) for c in CASES.values() for node in executor.prepared(c.graph, c.options).nodes]
    assert {node.op for _, node in nodes} == set(lowering.SHADERS)
    fused = {name for name, op in OPS.items() if op.fused}
    assert set(TOLERANCES) >= set(lowering.SHADERS) | fused
    assert fused & set(lowering.SHADERS) <= executor.fused_ops
    formats = {f.name for f in all_formats()}
    for op in ("embed", "matmul"):
        assert read_formats(op, nodes) == formats
    # The kernels are those of plain products, which meet every format: here, one of each family.
    for op in ("norm_matmul", "norm_gated"):
        assert read_formats(op, nodes) >= {"F32", "Q4_0", "Q8_0", "Q5_1", "Q6_K"}
    assert read_formats("matmul_add", nodes) >= {"F32", "Q4_0", "Q8_0", "Q5_1"}
    for op in ("expert_matmul", "expert_gated", "expert_add"):
        assert read_formats(op, nodes) >= {"F32", "Q4_0"}
    assert read_formats("expert_matmul", nodes) >= {"F16", "Q5_1", "Q6_K", "Q8_0"}
    assert read_formats("expert_gated", nodes) >= {"Q4_K"}
    for op, inputs in STATES.items():
        for i in inputs:
            held = {case.options.kv_type_of(n.inputs[i]) for case, n in nodes if n.op == op}
            assert held == set(KV_TYPES), (op, i)


def read_formats(op: str, nodes: list[tuple[Case, Node]]) -> set[str]:
    tensors = [
        case.graph.tensors[name]
        for case, n in nodes
        if n.op == op
        for name in n.inputs
        if name in case.graph.tensors
    ]
    return {t.dtype for t in tensors if t.kind == "weight" and len(t.shape) > 1}


@pytest.mark.parametrize("target", TARGETS)
def test_every_format_has_products_of_few_rows_and_tiled_ones(target: str) -> None:
    found = set()
    for case in CASES.values():
        for kernel in kernels_of(case.name, target):
            files = kernel.source.name.split(" + ")
            if {"inputs/plain.wgsl", "outputs/plain.wgsl"} <= set(files):
                (each,) = re.findall(r"const ROWS_EACH: u32 = (\d+);", kernel.source.text) or ("",)
                lanes = next((f for f in files if f.startswith("lanes/")), "")
                found.add((kernel.entry, next(f for f in files if f.startswith("quant/")), each, lanes))
    wanted = {("matvec", f"quant/{name}.wgsl", "", "") for name in ("f32", "f16", "bf16")}
    for f in all_formats():
        if target == CARD:
            wanted |= {("matvec_wide", f.wgsl, "", "lanes/sums_workgroup.wgsl"), ("matmul", f.wgsl, "4", "")}
        else:
            lanes = f"lanes/inputs_{'shared' if target == SHARED else 'own'}.wgsl"
            most = "8" if target == SHARED else "4"
            wanted |= {("matmul_software", f.wgsl, each, lanes) for each in ("1", most)}
    assert wanted <= found
    kernels = {"matvec", "matvec_wide", "matmul"} if target == CARD else {"matvec", "matmul_software"}
    assert {entry for entry, *_ in found} == kernels


def test_cases_run_every_shader_file() -> None:
    folder = importlib.resources.files("wgllm.shaders")
    taken: set[str] = set()
    for name in CASES:
        for target in TARGETS:
            for kernel in kernels_of(name, target):
                taken.update(name for name, _ in kernel.source.origin)
    for part in ("kernels", "inputs", "outputs", "heads", "kv_store", "kv", "quant", "lanes", "lib", "rows"):
        files = {f"{part}/{file.name}" for file in folder.joinpath(part).iterdir()}
        assert files - taken <= UNUSED | SAMPLING


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
    """Every shader that is composed from now on has ``new`` in place of ``old`` where ``file`` is part of it."""

    def read(name: str) -> str:
        text = shader_file(name)
        if name != file:
            return text
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(lowering, "compose", functools.partial(compose, read=read))


def named(verdicts: list[Verdict]) -> set[str]:
    """The operators whose verdicts are bad; each tells what is wrong with which number."""
    wrong = failures(verdicts)
    assert all(v.index is not None and v.error > v.tolerance for v in wrong)
    return {v.op for v in wrong}


# What is broken in these shows in steps of few rows; all else in those of many.
OF_FEW_ROWS = {
    "kernels/matvec_wide.wgsl", "inputs/normed.wgsl", "outputs/gated_silu.wgsl", "outputs/gated_gelu_tanh.wgsl",
    "kernels/attention_decode.wgsl", "kernels/attention_reduce.wgsl", "inputs/weighted.wgsl", "rows/summed.wgsl",
}  # fmt: skip


def shortened(name: str, file: str) -> Case:
    """One step of a case that would take long."""
    case = CASES[name]
    if not name.startswith("layer"):
        return case
    few = file in OF_FEW_ROWS
    return replace(case, steps=case.steps[-1:] if few else case.steps[-2:-1])


def nan_or_inf(of: str, bits: str) -> str:
    return f"bitcast<f32>(u32({of} * 0.0) | {bits}u)"


SILU, NAN, INFINITY = "safe_silu(a[i])", "0x7fc00000", "0x7f800000"
SOFTWARE_SUM, WIDE_SUM = "sum_0 += products(", "sum_0 += share("


@pytest.mark.usefixtures("textbook")
@pytest.mark.parametrize(
    ("op", "file", "old", "new"),
    [
        ("matmul", "kernels/matmul_software.wgsl", SOFTWARE_SUM, "sum_0 += 1.0003 * products("),
        ("matmul", "kernels/matmul_software.wgsl", "g < GROUPS;", "g < GROUPS - 1u;"),
        ("embed", "kernels/embed.wgsl", "group[", "1.000001 * group["),
        ("rms_norm", "lib/norm_rows.wgsl", "mean_square + EPS", "mean_square + 3.0 * EPS"),
        ("rope", "kernels/rope.wgsl", "pos[", "1 + pos["),
        ("mask", "lib/sees.wgsl", "held <= pos", "held < pos"),
        ("softmax", "kernels/softmax.wgsl", "exp(", "exp(0.99999 * "),
        ("attn_scores", "kernels/attn_scores.wgsl", "i % SEEN", "(i + 1u) % SEEN"),
        ("cell_write", "kernels/cell_write.wgsl", "= pos[r]", "= pos[r] + 1"),
        ("silu", "kernels/elementwise.wgsl", SILU, f"0.99999 * {SILU}"),
        ("silu", "kernels/elementwise.wgsl", SILU, nan_or_inf("a[i]", NAN)),
        ("silu", "kernels/elementwise.wgsl", SILU, nan_or_inf("a[i]", INFINITY)),
        ("add", "kernels/elementwise.wgsl", "a[i] + b[i];", "a[i] + b[i] + 1e-6;"),
    ],
)
def test_a_wrong_shader_of_a_textbook_model_is_named(
    executors: Callable[[str], WebGpuExecutor],
    op: str,
    file: str,
    old: str,
    new: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaking(monkeypatch, file, old, new)
    monkeypatch.setattr(check, "MODEL_STEPS", (7, 1))
    assert named(check_file(executors(SOFTWARE), MODEL)) == {op}


PRODUCTS = "norm_matmul norm_gated matmul_add"
WRONG = [
    # Products, by themselves and with what is around them.
    (
        SOFTWARE, "format Q4_0", "matmul", "kernels/matmul_software.wgsl",
        SOFTWARE_SUM, "sum_0 += 1.0003 * products(",
    ),
    (
        SOFTWARE, "layer Q4_0", PRODUCTS, "kernels/matmul_software.wgsl",
        SOFTWARE_SUM, "sum_0 += 1.0003 * products(",
    ),
    (SOFTWARE, "layer Q4_0", PRODUCTS, "kernels/matmul_software.wgsl", "sum_3 +=", "sum_2 +="),
    (SHARED, "layer Q4_0", PRODUCTS, "kernels/matmul_software.wgsl", "sum_7 +=", "sum_6 +="),
    (SHARED, "layer Q4_0", PRODUCTS, "lanes/inputs_shared.wgsl", "(mine, 1u)", "(mine, 0u)"),
    (CARD, "format Q4_0", "matmul", "kernels/matvec_wide.wgsl", WIDE_SUM, "sum_0 += 1.0003 * share("),
    (CARD, "layer Q4_0", PRODUCTS, "kernels/matvec_wide.wgsl", WIDE_SUM, "sum_0 += 1.0003 * share("),
    (CARD, "layer Q4_0", PRODUCTS, "kernels/matmul.wgsl", "g < end;", "g + 1u < end;"),
    (CARD, "format Q6_K", "matmul", "kernels/matmul.wgsl", "g < end;", "g + 1u < end;"),
    (CARD, "odd widths F16", "matmul", "kernels/matvec.wgsl", "sum += group[j]", "sum += 1.0003 * group[j]"),
    (
        CARD, "layer of odd width", PRODUCTS, "kernels/matvec.wgsl",
        "sum += group[j]", "sum += 1.0003 * group[j]",
    ),
    (
        SOFTWARE, "layer Q4_0", "matmul_add", "outputs/added.wgsl",
        "residual[place(r, o)]", "1.001 * residual[place(r, o)]",
    ),
    (CARD, "layer Q8_0 with biases", "norm_matmul", "outputs/biased.wgsl", "bias[o]", "1.001 * bias[o]"),
    (
        SOFTWARE, "layer without a gate", "matmul_row_add", "outputs/biased_added.wgsl",
        "bias[o]", "1.001 * bias[o]",
    ),
    (
        CARD, "layer without a gate", "matmul_row_add", "outputs/biased_added.wgsl",
        "residual[place(r, o)]", "1.001 * residual[place(r, o)]",
    ),
    (CARD, "layer without a gate", "matmul_row", "outputs/biased.wgsl", "bias[o]", "1.001 * bias[o]"),
    (
        CARD, "layer beside its MLP", "matmul_gated", "outputs/gated_silu.wgsl",
        "safe_silu(gate)", "1.001 * safe_silu(gate)",
    ),
    (
        SOFTWARE, "layer beside its MLP", "matmul_gated", "kernels/elementwise.wgsl",
        "safe_silu(a[at])", "safe_silu(1.001 * a[at])",
    ),
    (
        SOFTWARE, "layer beside its MLP", "rope_write", "kernels/rope_write.wgsl",
        "return turned[i]", "return 1.0001 * turned[i]",
    ),
    (
        SOFTWARE, "layer without a gate", "gelu", "lib/math.wgsl",
        "0.19624884", "0.1963",
    ),
    (SOFTWARE, "norms of 33", "layer_norm", "kernels/layer_norm.wgsl", "r % HEADS * WIDTH", "0u * r"),
    (
        CARD, "layer Q4_0", "norm_gated", "outputs/gated_silu.wgsl",
        "safe_silu(gate)", "1.001 * safe_silu(gate)",
    ),
    (
        CARD, "layer of K-quants with norms", "norm_gated", "outputs/gated_gelu_tanh.wgsl",
        "(gate)", "(1.001 * gate)",
    ),
    (
        SOFTWARE, "layer Q4_0", "norm_gated", "kernels/elementwise.wgsl",
        "safe_silu(a[at])", "safe_silu(1.001 * a[at])",
    ),
    (
        SOFTWARE, "layer of K-quants with norms", "norm_gated", "kernels/elementwise.wgsl",
        "a[at + WIDTH]", "a[at]",
    ),
    (
        CARD, "layer Q4_0", "norm_matmul norm_gated", "inputs/normed.wgsl",
        "squares / f32", "1.001 * squares / f32",
    ),
    # Mixtures of experts.
    (
        SOFTWARE, "router 8 of 128", "top_experts", "kernels/top_experts.wgsl",
        "other == mine && i < e", "other == mine && i > e",
    ),
    (SOFTWARE, "router 4 of 60", "top_experts", "kernels/top_experts.wgsl", "SCALE / sum", "1.00002 / sum"),
    (SOFTWARE, "router 4 of 60", "weighted_sum", "kernels/weighted_sum.wgsl", "+= weights", "+= 1.00001 * weights"),
    (
        SOFTWARE, "experts F16 2 of 5×96", "expert_matmul", "rows/chosen.wgsl",
        "min(r, ROWS - 1u) / SHARED", "min(r, ROWS - 1u)",
    ),
    (
        SOFTWARE, "experts F16 2 of 5×96", "expert_matmul", "rows/sorted.wgsl",
        "sorted[p / TILE_ROWS]", "sorted[0]",
    ),
    (
        SOFTWARE, "layer of experts, Q4_0", "expert_gated expert_add", "kernels/sort_experts.wgsl",
        "tile += tiles_of(rows)", "tile += 1u",
    ),
    (
        CARD, "layer of experts, Q4_0", "expert_gated", "lib/experts.wgsl",
        "i / EXPERT_ROWS * EXPERTS", "i / EXPERT_ROWS",
    ),
    (CARD, "layer of experts, Q4_0", "expert_add", "inputs/weighted.wgsl", "shares[", "1.0003 * shares["),
    (CARD, "layer of experts, Q4_0", "expert_add", "rows/summed.wgsl", "+ g / EACH]", "+ 0u]"),
    (SOFTWARE, "layer of experts, odd width", "gate_rows", "kernels/gate_rows.wgsl", "* gate;", "* gate * 1.0001;"),
    # Norms.
    (
        SOFTWARE, "norms of 33", "rms_norm", "lib/norm_rows.wgsl",
        "mean_square + EPS", "1.001 * mean_square + EPS",
    ),
    (
        SOFTWARE, "layer of K-quants with norms", "norm_matmul norm_gated norm_add", "lib/norm_rows.wgsl",
        "mean_square + EPS", "1.001 * mean_square + EPS",
    ),
    (SOFTWARE, "layer of K-quants with norms", "norm_add", "kernels/norm_add.wgsl", "+ v;", "+ 1.0001 * v;"),
    (SOFTWARE, "layer of K-quants with norms", "rope_write", "heads/normed.wgsl", "+ EPS", "* 1.0001 + EPS"),
    (SOFTWARE, "norms of 33", "layer_norm", "kernels/layer_norm.wgsl", "+ EPS", "* 1.0001 + EPS"),
    # Rope, and what is stored.
    (SOFTWARE, "rope", "rope", "kernels/rope.wgsl", "pos[", "1 + pos["),
    (
        SOFTWARE, "layer Q4_0", "rope_write", "kernels/rope_write.wgsl",
        "turns[p * HALF", "turns[(p + 1u) * HALF",
    ),
    (
        SOFTWARE, "layer Q4_0", "rope_write", "kernels/rope_write.wgsl",
        "u32(p) % CELLS", "(u32(p) + 1u) % CELLS",
    ),
    (
        SOFTWARE, "layer Q4_0", "rope_write", "kernels/rope_write.wgsl",
        "return turned[i]", "return 1.0001 * turned[i]",
    ),
    (SOFTWARE, "layer Q4_0", "cell_write", "kernels/cell_write.wgsl", "= pos[r]", "= pos[r] + 1"),
    # Attention.
    (SOFTWARE, "attention f32 9/3×4", "attention", "lib/sees.wgsl", "held <= pos", "held < pos"),
    (SOFTWARE, "textbook attention f32", "mask", "lib/sees.wgsl", "held <= pos", "held < pos"),
    (SOFTWARE, "textbook attention q8_0", "mask", "lib/sees.wgsl", "< WINDOW", "<= WINDOW"),
    (SOFTWARE, "textbook attention f32", "softmax", "kernels/softmax.wgsl", "exp(", "exp(0.99999 * "),
    (
        SOFTWARE, "textbook attention f16", "attn_scores", "kernels/attn_scores.wgsl",
        "i % SEEN", "(i + 1u) % SEEN",
    ),
    (
        SOFTWARE, "textbook attention q4_0", "attn_values", "kernels/attn_values.wgsl",
        "sum +=", "sum += 1.0001 *",
    ),
    (SOFTWARE, "layer Q8_0 with biases", "attention", "lib/sees.wgsl", "held <= pos", "held < pos"),
    (CARD, "layer F16 of two formats", "attention", "lib/sees.wgsl", "< WINDOW", "<= WINDOW"),
    (
        SOFTWARE, "long context", "attention", "kernels/attention_decode.wgsl",
        "dot(a, key_3)", "dot(a, key_2)",
    ),
    (
        CARD, "attention q4_0 9/3×64", "attention", "kernels/attention_decode.wgsl",
        "w.w * value_3", "w.z * value_3",
    ),
    (SOFTWARE, "layer Q4_0", "attention", "kernels/attention_prefill.wgsl", "dot(a, key_3)", "dot(a, key_2)"),
    (CARD, "layer Q4_0", "attention", "kernels/attention_prefill.wgsl", "w.w * value_3", "w.z * value_3"),
    (CARD, "long context", "attention", "kernels/attention_reduce.wgsl", "exp(", "exp(0.999 * "),
    (
        SOFTWARE, "attention q8_0 9/3×32", "attention", "lib/attention.wgsl",
        "product * SCALE", "product * 1.0001 * SCALE",
    ),
    (CARD, "attention q8_0 and f16", "attention", "lib/attention.wgsl", "safe_tanh(", "0.9999 * safe_tanh("),
]  # fmt: skip


@pytest.mark.parametrize(("target", "case", "ops", "file", "old", "new"), WRONG)
def test_a_wrong_shader_is_named(
    executors: Callable[[str], WebGpuExecutor],
    target: str,
    case: str,
    ops: str,
    file: str,
    old: str,
    new: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaking(monkeypatch, file, old, new)
    assert named(check_case(executors(target), shortened(case, file))) == set(ops.split())


TO_F16 = "pack2x16float(vec2<f32>(number(2u * i), number(2u * i + 1u)))"
CUT = {
    "f32": ("bitcast<u32>(number(i))", "bitcast<u32>(number(i)) & 0xffff0000u"),
    "f16": (TO_F16, f"({TO_F16} & 0xfffefffeu)"),
    "q8_0": ("whole + trunc(2.0 * (scaled - whole))", "whole"),
    "q4_0": ("+ 8.5", "+ 8.0"),
}


@pytest.mark.parametrize(
    ("kv_type", "case", "op"),
    [
        ("f32", "attention f32 9/3×4", "kv_write"),
        ("f16", "attention f16 9/3×64", "kv_write"),
        ("q8_0", "attention q8_0 9/3×32", "kv_write"),
        ("q4_0", "attention q4_0 9/3×64", "kv_write"),
        ("f32", "layer Q4_0", "rope_write"),
        ("f16", "layer Q8_0 with biases", "rope_write"),
        ("q8_0", "layer of K-quants with norms", "rope_write"),
        ("q4_0", "layer F16 of two formats", "rope_write"),
    ],
)
def test_what_rounds_down_into_kv_state_is_named(
    executors: Callable[[str], WebGpuExecutor],
    kv_type: str,
    case: str,
    op: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = f"kv_store/{kv_type}.wgsl"
    breaking(monkeypatch, file, *CUT[kv_type])
    verdicts = check_case(executors(SOFTWARE), shortened(case, file))
    assert named(verdicts) == {op}
    assert {v.format for v in failures(verdicts)} == {kv_type}


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
