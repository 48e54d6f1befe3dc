"""The command line with the WebGPU backend, each run a process: what it says computes, and what it says of errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.unit.test_cli import MODEL, one_line, wgllm
from wgllm import models
from wgllm.backends.device import Device
from wgllm.formats.gguf import open_gguf

GENERATE = ("generate", "-m", MODEL, "--raw", "--temp", "0", "--ignore-eos", "-n", "12")
NO_DRIVER = {"VK_DRIVER_FILES": "/nonexistent.json", "VK_ICD_FILENAMES": "/nonexistent.json"}


def test_webgpu_writes_the_text_that_numpy_writes(own_device: Device) -> None:
    prompt = "hello there"
    expected = wgllm(*GENERATE, "--backend", "numpy", prompt)
    run = wgllm(*GENERATE, "--backend", "webgpu", prompt)
    assert run.returncode == 0, run.stderr
    assert run.stdout == expected.stdout and len(run.stdout) > 12
    assert f"webgpu on {own_device.adapter}" in run.stderr and "numpy" not in run.stderr
    quiet = wgllm(*GENERATE, "--device", str(own_device.adapter.index), "-q", prompt)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, expected.stdout, "")


def test_bench_tells_what_a_token_takes_of_the_device(own_device: Device) -> None:
    arguments = ("bench", "-m", MODEL, "--backend", "webgpu", "-r", "1", "-p", "24", "-n", "4", "-d", "8")
    run = wgllm(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    prompt, token = (json.loads(line) for line in run.stdout.splitlines())
    with open_gguf(Path(MODEL)) as file:
        graph = models.build(file).graph
    layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128
    weights = 4 * (3 * layer + 512 * 64)
    for made in (prompt, token):
        assert made["backend"] == "webgpu" and made["where"] == f"webgpu on {own_device.adapter}"
        assert made["gemv_bytes_s"] is None and made["bandwidth_share"] is None
        assert made["roofline_share"] == pytest.approx(made["tok_s"] / made["roofline_tok_s"], rel=0.02)
        assert 0 < made["python_seconds_per_token"] < 1 / made["tok_s_min"]
        assert made["host_peak_bytes"] > made["device_buffer_bytes"] > weights
        assert min(made[k] for k in ("read_bytes_s", "copy_bytes_s", "fma_flops", "dispatch_gap_seconds")) > 0
    assert 3 * 6 < token["dispatches_per_token"] < len(graph.nodes)
    assert weights < token["device_bytes_per_token"] < 2 * weights
    shown = wgllm(*arguments)
    assert shown.returncode == 0 and "of buffers on the device" in shown.stderr
    head, first, _ = shown.stdout.splitlines()
    assert "of roofline" in head and "pp24 @ d8" in first
    assert len(head) == len(first) <= 100


def test_some_layers_on_each_side(own_device: Device) -> None:
    run = wgllm(*GENERATE, "--backend", "webgpu", "-ngl", "1", "hello")
    assert run.returncode == 0, run.stderr
    assert f"webgpu on {own_device.adapter}; 1 of 3 layers; the others on the CPU" in run.stderr
    assert run.stdout == wgllm(*GENERATE, "--backend", "numpy", "hello").stdout


@pytest.mark.usefixtures("own_device")
def test_too_little_memory_is_one_line() -> None:
    run = wgllm(*GENERATE, "--backend", "webgpu", "--device-memory", "1K", "hello")
    assert run.returncode == 5
    assert "a smaller -c or --gpu-layers is needed" in one_line(run)


@pytest.mark.usefixtures("own_device")
def test_a_card_that_is_not_there_is_one_line() -> None:
    run = wgllm(*GENERATE, "--device", "no such card", "hello")
    assert run.returncode == 2
    assert "no graphics card 'no such card'" in one_line(run)


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux can Vulkan's drivers be hidden")
def test_without_a_driver_webgpu_is_an_error_and_auto_is_numpy() -> None:
    run = wgllm(*GENERATE, "--backend", "webgpu", "hello", **NO_DRIVER)
    assert run.returncode == 5
    assert one_line(run) == "wgllm: no graphics card: no driver shows one; use --backend numpy\n"
    run = wgllm(*GENERATE, "hello", **NO_DRIVER, WGLLM_BACKEND="auto")
    assert run.returncode == 0
    assert "numpy on the CPU (no driver shows one)" in run.stderr
    assert "Traceback" not in run.stderr
