"""``wgllm plan``: its figures beside those made by hand, its files, its errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny
from wgllm import models, placement
from wgllm.backends import fills
from wgllm.backends.device import Adapter, Device
from wgllm.cli import main
from wgllm.errors import DeviceError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import TensorView
from wgllm.lowering import PlanOptions, lower, prepared
from wgllm.plan import Limits, Plan, Width
from wgllm.plan_figures import PlanFigures, Traffic

MODEL = str(tiny("llama-tied.f32").path)
CTX = 512

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, on a graph without fused nodes: exit code, stdout, stderr."""
    monkeypatch.setenv("WGLLM_FUSE", "0")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(("plan", *arguments))
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def figures(run: Run) -> Callable[..., dict[str, Any]]:
    """What ``--json`` shows of a tiny model."""

    def call(name: str, *arguments: str) -> dict[str, Any]:
        code, out, err = run("-m", str(tiny(name).path), "--json", *arguments)
        assert (code, err) == (0, "")
        facts = json.loads(out)
        assert isinstance(facts, dict)
        return facts

    return call


def matrices(name: str) -> Iterator[TensorView]:
    """Those that a row with logits is multiplied with."""
    with open_gguf(tiny(name).path) as file:
        views = [v for v in file.tensors.values() if len(v.shape) == 2]
        for view in views:
            if view.name != "token_embd.weight" or "output.weight" not in file.tensors:
                yield view


# Figures


def test_dispatches_are_the_graphs_nodes(figures: Callable[..., dict[str, Any]]) -> None:
    facts = figures("llama-tied.f32")
    with open_gguf(MODEL) as file:
        graph = models.build(file).graph
    nodes = [n for n in graph.nodes if n.op != "reshape"]  # the same buffer under another name
    schedules = facts["schedules"]
    assert schedules["decode"]["dispatches"] + schedules["tail"]["dispatches"] == len(nodes)
    assert schedules["prefill"]["dispatches"] == schedules["decode"]["dispatches"]
    of_a_layer = sum(n.layer == 0 for n in nodes)
    assert schedules["decode"]["dispatches_per_layer"] == [of_a_layer, of_a_layer]
    assert sum(k["dispatches"] for k in facts["kernels"]) == len(nodes)
    counts = {k["entry"]: k["dispatches"] for k in facts["kernels"]}
    for op, entry in (
        ("rms_norm", "rms_norm"),
        ("matmul", "matvec_wide"),
        ("silu", "silu"),
        ("mask", "mask"),
    ):
        assert counts[entry] == sum(n.op == op for n in nodes)
    assert facts["layers"] == len({n.layer for n in nodes} - {None})


@pytest.mark.parametrize(
    "name", ["llama-tied.f32", "llama-tied.q8_0", "llama-q.q4_k_s", "llama-q.q6_k", "qwen2.f32"]
)
def test_weights_are_those_of_the_file(name: str, figures: Callable[..., dict[str, Any]]) -> None:
    facts = figures(name)
    with open_gguf(tiny(name).path) as file:
        of_file: dict[str, int] = {}
        for view in file.tensors.values():
            of_file[view.format.name] = of_file.get(view.format.name, 0) + view.nbytes
    of_plan = {w["format"]: w for w in facts["weights"]}
    assert {k: w["file_bytes"] for k, w in of_plan.items() if w["file_bytes"]} == of_file
    for kind, size in of_file.items():
        assert size <= of_plan[kind]["bytes"] < 1.02 * size + 1024
    weights = next(m for m in facts["memory"] if m["role"] == "weights")
    inside = sum(w["bytes"] for w in facts["weights"])
    assert inside <= weights["bytes"] < inside + 256 * (sum(w["tensors"] for w in facts["weights"]) + 8)
    assert facts["memory_bytes"] == sum(m["bytes"] for m in facts["memory"])


def test_a_tokens_bytes_and_multiplications(figures: Callable[..., dict[str, Any]]) -> None:
    facts = figures("llama-tied.f32", "--pos", "300")
    with open_gguf(MODEL) as file:
        c = models.build(file).config
    token, kinds = facts["token"], facts["token"]["bytes_by_kind"]
    sizes = [math.prod(v.shape) for v in matrices("llama-tied.f32")]
    heads, kv_heads, head_dim = c.n_heads, c.n_kv_heads, c.head_dim
    cell = c.n_layers * 2 * kv_heads * head_dim * 4
    assert kinds["products"] == token["packed_weights"] == 4 * sum(sizes)
    assert kinds["embedding"] == 4 * c.d_model
    assert kinds["kv"] == 512 * cell  # schedules are made for powers of two
    assert token["kv"] == 300 * cell
    assert kinds["written"] == cell + 4
    assert kinds["positions"] == 512 * 4 * c.n_layers
    norms = (2 * c.n_layers + 1) * 4 * c.d_model
    assert (
        kinds["parameters"] == norms + 2 * c.n_layers * 4 * head_dim
    )  # and the turns of queries and of keys
    assert token["bytes"] == sum(kinds.values())
    assert token["bytes_read"] == token["bytes"] - kinds["written"] - kinds["activations"]
    assert token["least_bytes"] == 4 * sum(sizes) + 300 * cell
    assert token["ratio"] == pytest.approx(token["bytes"] / token["least_bytes"], abs=1e-4)
    assert token["read_ratio"] == pytest.approx(token["bytes_read"] / token["least_bytes"], abs=1e-4)
    (products,) = (k for k in facts["kernels"] if k["entry"] == "matvec_wide")
    assert products["multiplications"] == sum(sizes) and products["weight_bytes"] == 4 * sum(sizes)
    for entry in ("attn_scores", "attn_values"):
        (kernel,) = (k for k in facts["kernels"] if k["entry"] == entry)
        assert kernel["multiplications"] == c.n_layers * heads * 512 * head_dim
        assert kernel["kv_bytes"] == 512 * cell // 2
    assert token["multiplications"] == sum(k["multiplications"] for k in facts["kernels"])
    decode, tail = facts["schedules"]["decode"], facts["schedules"]["tail"]
    assert token["bytes"] == decode["bytes"] + tail["bytes"]
    assert facts["kernels"][0] == products


def test_activations_are_what_the_nodes_read_and_make(figures: Callable[..., dict[str, Any]]) -> None:
    facts = figures("llama-tied.f32", "--rows", "64")
    with open_gguf(MODEL) as file:
        graph = models.build(file).graph
    sizes = {"rows": 1, "out_rows": 1, "slots": 1, "cells": CTX}
    total = 0
    for node in graph.nodes:
        if node.op == "reshape":
            continue
        for name in (*node.inputs, *node.outputs):
            tensor = graph.tensors[name]
            if tensor.kind not in ("weight", "state"):
                numbers = math.prod(d if isinstance(d, int) else sizes[d] for d in tensor.shape)
                if node.op == "select_rows" and name == node.inputs[0]:
                    numbers = math.prod(d for d in tensor.shape if isinstance(d, int))
                total += -(-4 * numbers // 16) * 16
    assert facts["token"]["bytes_by_kind"]["activations"] == total


def test_the_kv_state_counts_in_its_type(figures: Callable[..., dict[str, Any]]) -> None:
    plain = figures("gemma3.f32")["token"]
    assert figures("gemma3.f32", "-ctk", "f16", "-ctv", "f16")["token"]["kv"] == plain["kv"] / 2
    mixed = figures("gemma3.f32", "-ctv", "f16")
    assert (mixed["kv_type"], mixed["kv_type_v"]) == ("f32", "f16")
    assert mixed["token"]["kv"] == plain["kv"] * 3 / 4
    kinds = {k["format"] for k in mixed["kernels"] if k["entry"].startswith("attn_")}
    assert kinds == {"f32", "f16"}


def test_a_window_bounds_what_a_token_sees(figures: Callable[..., dict[str, Any]]) -> None:
    rows = 8
    facts = figures("gemma3.f32", "--rows", str(rows))
    with open_gguf(tiny("gemma3.f32").path) as file:
        built = models.build(file)
    seen = needed = 0
    for tensor in built.graph.of_kind("state"):
        if tensor.dtype != "i32":
            _, heads, cells, dim = tensor.shape
            assert isinstance(heads, int) and isinstance(dim, int)
            window = built.graph.windows[str(cells)]
            needed += 4 * heads * dim * (CTX if window is None else min(CTX, window))
            seen += 4 * heads * dim * (CTX if window is None else min(CTX, window + rows))
    assert any(built.graph.windows.values()) and needed < seen
    assert facts["token"]["kv"] == needed
    assert facts["token"]["bytes_by_kind"]["kv"] == seen


def test_matrices_in_shards_and_smaller_limits() -> None:
    """Shards of a table are looked up once, and read in all."""
    with open_gguf(MODEL) as file:
        graph = models.build(file).graph
    table = graph.tensors["token_embd.weight"]
    vocab, d_model = table.shape
    assert isinstance(vocab, int) and isinstance(d_model, int)
    options = PlanOptions({"slots": 1, "cells": 64}, 64, 4, limits=Limits(binding=4 * d_model * (vocab // 3)))
    plan = lower(graph, options)
    shown = PlanFigures(plan, graph)
    token = shown.token(64)
    assert sum(r.tensor == table.name for f in plan.fills for r in f.rows) > 3
    assert token.traffic.embedding == 4 * d_model
    assert token.packed_weights == token.traffic.products
    whole = PlanFigures(lower(graph, PlanOptions({"slots": 1, "cells": 64}, 64, 4)), graph).token(64)
    assert token.packed_weights == whole.packed_weights and token.kv == whole.kv
    prefill = shown.schedule(*plan.schedule("body", 4, 64))
    assert prefill.width == Width("body", 4, 64) and prefill.traffic.embedding == 4 * 4 * d_model
    assert (Traffic(kv=1) + Traffic(kv=2, written=3)).all == 6


# Fused


@pytest.mark.parametrize(("ctx", "splits"), [("64", False), ("512", True)])
def test_dispatches_of_a_fused_layer(
    figures: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, ctx: str, splits: bool
) -> None:
    monkeypatch.delenv("WGLLM_FUSE")
    with open_gguf(MODEL) as file:
        built = models.build(file)
    ops = [n.op for n in prepared(built.graph).nodes if n.layer == 0 and n.op != "reshape"]
    assert ops == ["norm_matmul", "rope_write", "attention", "matmul_add", "norm_gated", "matmul_add"]
    facts = figures("llama-tied.f32", "-c", ctx)
    n = built.config.n_layers
    entries = {"embed": 1, "cell_write": 1, "matvec_wide": 4 * n + 1, "rope_write": n, "attention_decode": n}
    counts = {**entries, **({"attention_reduce": n} if splits else {}), "select_rows": 1}
    assert {k["entry"]: k["dispatches"] for k in facts["kernels"]} == counts
    decode, tail = facts["schedules"]["decode"], facts["schedules"]["tail"]
    assert decode["dispatches_per_layer"] == [6 + splits, 6 + splits]
    assert (decode["dispatches"], tail["dispatches"]) == ((6 + splits) * n + 2, 2)


@pytest.mark.parametrize("name", ["llama-tied.f32", "llama-q.q4_k_s", "qwen2.f32", "gemma3.f32"])
def test_fused_plans_read_the_weights_of_the_textbook(
    figures: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    textbook = figures(name, "-ctv", "f16")
    monkeypatch.delenv("WGLLM_FUSE")
    fused = figures(name, "-ctv", "f16")
    assert fused["weights"] == textbook["weights"]
    for figure in ("packed_weights", "kv", "least_bytes"):
        assert fused["token"][figure] == textbook["token"][figure]
    ours, theirs = fused["token"]["bytes_by_kind"], textbook["token"]["bytes_by_kind"]
    for kind in ("products", "embedding", "kv", "positions", "written"):
        assert ours[kind] == theirs[kind]
    with open_gguf(tiny(name).path) as file:
        config = models.build(file).config
    # The turns of rope, once for queries and keys.
    assert theirs["parameters"] - ours["parameters"] == config.n_layers * 4 * config.head_dim
    assert ours["activations"] < theirs["activations"] / 2
    assert fused["token"]["ratio"] < textbook["token"]["ratio"]
    of_states = {"rope_write": "f32/f16", "attention_decode": "f32/f16", "attention_reduce": ""}
    assert {k["entry"]: k["format"] for k in fused["kernels"] if k["entry"] in of_states} == of_states
    assert sum(k["kv_bytes"] for k in fused["kernels"]) == ours["kv"]


def test_biases_of_shards_are_parameters() -> None:
    with open_gguf(tiny("qwen2.f32").path) as file:
        graph = prepared(models.build(file).graph)
    d_model = graph.tensors["output_norm.weight"].shape[0]
    assert isinstance(d_model, int)
    tokens, normed = [], []
    for rows in (1 << 20, 64):
        options = PlanOptions({"slots": 1, "cells": 64}, 64, 4, limits=Limits(binding=4 * d_model * rows))
        shown = PlanFigures(plan := lower(graph, options), graph)
        tokens.append(shown.token(64).traffic)
        launches = [d for _, schedule in shown.decode(64) for d in schedule]
        normed.append(sum(plan.nodes[d.node].op in ("norm_matmul", "norm_gated") for d in launches))
    assert normed[1] > normed[0]
    # A norm is read for each shard, biases in parts.
    assert tokens[1].parameters - tokens[0].parameters == 4 * d_model * (normed[1] - normed[0])
    assert tokens[1].products == tokens[0].products


def test_what_people_read(run: Run) -> None:
    code, out, err = run("-m", MODEL, "--pos", "300")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("llama-tied.f32.gguf: ") and "a context of 512 tokens, KV f32" in lines[0]
    assert lines[1].startswith("WebGPU's default limits: buffers of 256 MiB, bindings of 128 MiB, 8 buffers")
    heads = ["Memory", "Weights", "Schedule", "Kernels of a token", "A token at 300"]
    assert [next(line for line in lines if line.startswith(h)) for h in heads]
    assert max(map(len, lines)) <= 120
    assert "packed weights + KV: " in lines[-1]


# Limits of a device


def pretend_device(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    card = Adapter(0, "Imaginary 9000", "discrete", "Vulkan", None)
    granted = {
        "max-buffer-size": 1 << 30,
        "max-storage-buffer-binding-size": 1 << 29,
        "max-storage-buffers-per-shader-stage": 16,
        "max-compute-workgroup-storage-size": 32768,
        "max-compute-invocations-per-workgroup": 1024,
        "max-compute-workgroup-size-x": 1024,
        "max-compute-workgroups-per-dimension": 65535,
    }
    granted.update({name.replace("_", "-"): n for name, n in limits.items()})
    monkeypatch.setattr(placement, "adapters", lambda: [card])
    opened = SimpleNamespace(adapter=card, limits=granted)
    monkeypatch.setattr(Device, "open", staticmethod(lambda adapter, features=(), **_: opened))


def test_the_limits_of_a_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_device(monkeypatch)
    code, out, err = run("-m", MODEL, "--device", "imaginary", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["limits"]["buffer"] == 1 << 30 and facts["limits"]["invocations"] == 1024
    assert facts["limits_of"] == "Imaginary 9000 (discrete, Vulkan)"
    code, out, err = run("-m", MODEL, "--device", "Radeon")
    assert (code, out) == (2, "") and "'Radeon'" in err and "0: Imaginary 9000" in err
    pretend_device(monkeypatch, max_storage_buffer_binding_size=16384, max_buffer_size=16384)
    code, out, err = run("-m", MODEL, "--device", "0")
    assert (code, out) == (5, "") and err.startswith("wgllm: Imaginary 9000 (discrete, Vulkan): ")


def test_a_device_that_can_not_be_opened(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Adapter]:
        raise DeviceError("wgpu is not installed")

    monkeypatch.setattr(placement, "adapters", refuse)
    code, out, err = run("-m", MODEL, "--device", "0")
    assert (code, out, err) == (5, "", "wgllm: wgpu is not installed\n")
    assert run("-m", MODEL)[0] == 0  # nobody asks for adapters


# Errors


@pytest.mark.parametrize(
    ("arguments", "expected", "says"),
    [
        (["-c", "64", "--rows", "65"], 2, "--rows 65 does not fit a context of 64"),
        (["-c", "64", "--pos", "65"], 2, "--pos 65 does not fit a context of 64"),
        (["--rows", "0"], 2, "--rows"),
        (["--pos", "0"], 2, "--pos"),
        (["-c", "4294967296"], 2, "too large"),
        (["-c", "100000000"], 5, "WebGPU's default limits: "),
        (["-ctk", "q8_0"], 5, "WebGPU's default limits: heads of"),
        (["--host", "dawn"], 2, "--host"),
        (["-m", "no-such-model"], 3, "no-such-model"),
        (["-hf", "org/repo"], 2, "-m and -hf"),
    ],
)
def test_errors(run: Run, arguments: list[str], expected: int, says: str) -> None:
    code, out, err = run("-m", MODEL, "--offline", *arguments)
    assert (code, out) == (expected, "") and says in err and err.count("\n") == 1


# Files


def exported(run: Run, folder: Path, *arguments: str) -> Plan:
    code, _, err = run("--export", str(folder), *arguments)
    assert code == 0 and "plan.json" in err and "weights.bin" in err
    assert {f.name for f in folder.iterdir()} == {"plan.json", "weights.bin"}
    return Plan.from_json(json.loads((folder / "plan.json").read_text(encoding="utf-8")))


def test_export(run: Run, tmp_path: Path) -> None:
    name = "llama-q.q4_k_s"
    path = tiny(name).path
    plan = exported(
        run, tmp_path / "new" / "site", "-m", str(path), "-c", "300", "--rows", "16", "-ctk", "f16"
    )
    assert set(plan.schedules) == {Width("body", 1, 300), Width("body", 16, 300), Width("tail", 1)}
    assert (plan.rows, plan.out_rows, plan.cells, plan.host) == (16, 1, 300, "tint")
    assert plan.limits == Limits()
    used = {d.kernel for schedule in plan.schedules.values() for d in schedule}
    assert used == set(range(len(plan.kernels)))
    for rows in (1, 2, 16):
        assert plan.schedule("body", rows, rows)[0].rows == (1 if rows == 1 else 16)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan

    data = np.fromfile(tmp_path / "new" / "site" / "weights.bin", np.uint8)
    assert data.size == sum(f.region.size for f in plan.fills)
    at = 0
    seen = []
    with open_gguf(path) as file:
        for fill in plan.fills:
            region = data[at : at + fill.region.size]
            at += fill.region.size
            if fill.kind == "numbers":
                want = np.concatenate([file.tensors[r.tensor].array() for r in fill.rows])
                assert np.array_equal(region.view(np.float32)[: want.size], want)
            elif fill.kind == "packed":
                views = [file.tensors[r.tensor] for r in fill.rows]
                assert [r[1:] for r in fill.rows] == [(0, v.n_rows) for v in views]
                fmt = views[0].format
                packed = fmt.pack(np.concatenate([v.data for v in views]).reshape(-1, fmt.type_size))
                assert np.array_equal(region, packed.words.view(np.uint8))
            seen += [r.tensor for r in fill.rows]
    assert "token_embd.weight" in seen and "output_norm.weight" in seen


def test_the_host_decides_on_the_shaders_text(run: Run, tmp_path: Path) -> None:
    naga = exported(run, tmp_path, "-m", MODEL, "--host", "naga", "--json")
    assert naga.host == "naga"
    tint = exported(run, tmp_path, "-m", MODEL)  # takes the other's place
    assert tint.host == "tint" and len(tint.kernels) == len(naga.kernels)


def test_a_failure_leaves_no_half_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fills.packed_file

    def breaks(plan: Plan, weights: Mapping[str, TensorView]) -> Iterator[fills.Bytes]:
        yield next(whole(plan, weights))
        raise OSError(28, "No space left on device")

    exported(run, tmp_path / "old", "-m", MODEL)
    old = {f.name: f.read_bytes() for f in (tmp_path / "old").iterdir()}
    monkeypatch.setattr(fills, "packed_file", breaks)
    for folder in ("new", "old"):
        code, out, err = run("-m", MODEL, "-c", "64", "--export", str(tmp_path / folder))
        assert (code, out, err) == (1, "", "wgllm: No space left on device\n")
    assert not list((tmp_path / "new").iterdir())
    assert {f.name: f.read_bytes() for f in (tmp_path / "old").iterdir()} == old


def test_what_the_limits_do_not_allow_is_not_exported(run: Run, tmp_path: Path) -> None:
    code, _, _ = run("-m", MODEL, "-c", "100000000", "--export", str(tmp_path / "new"))
    assert code == 5 and not (tmp_path / "new").exists()
    (tmp_path / "file").write_bytes(b"")
    code, out, err = run("-m", MODEL, "--export", str(tmp_path / "file"))
    assert (code, out) == (1, "") and "file" in err and err.count("\n") == 1
