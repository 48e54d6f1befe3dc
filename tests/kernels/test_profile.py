"""``WGLLM_DEBUG=2``: kernels by name with times and the bytes of the plan; and what the device can do at best."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from tests.tiny import load_on, run_chunks, tiny
from wgllm import placement
from wgllm.backends import profile
from wgllm.backends.device import TIMESTAMPS, Device, OutOfDeviceMemory
from wgllm.backends.profile import Profile
from wgllm.backends.roofline import Roofline, measure
from wgllm.backends.webgpu import WebGpuExecutor, WebGpuProgram
from wgllm.plan_figures import PlanFigures

MODEL = tiny("llama-q.q4_k_s")
IDS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
ROOF = Roofline(1e11, 1e11, 1e12, 1e-6)


@pytest.fixture
def timed_device(own_device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """As it is opened under ``WGLLM_DEBUG=2``."""
    monkeypatch.setenv("WGLLM_DEBUG", "2")
    device = placement.open_device(own_device.adapter)
    if TIMESTAMPS not in device.features:
        pytest.skip("this adapter has no timestamps")
    return device


@pytest.fixture(autouse=True)
def roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known without measuring."""
    monkeypatch.setattr(profile, "measure", lambda device: ROOF)


def load(device: Device) -> WebGpuProgram:
    program = load_on(WebGpuExecutor(device), MODEL.path, largest_step=8)
    assert isinstance(program, WebGpuProgram)
    return program


def profile_of(program: WebGpuProgram) -> Profile:
    assert program._profile is not None
    return program._profile


def planned(program: WebGpuProgram) -> tuple[Counter[tuple[str, str, str]], Counter[tuple[str, str, str]]]:
    """Calls and bytes of the steps of ``IDS``: 8 rows and 2 as prompt, the last token alone."""
    figures = PlanFigures(program.plan, program.graph)
    calls: Counter[tuple[str, str, str]] = Counter()
    touched: Counter[tuple[str, str, str]] = Counter()
    for part, rows, cells in (("prompt", 8, 8), ("prompt", 2, 10), ("decode", 1, 11)):
        for width, schedule in (
            program.plan.schedule("body", rows, cells),
            program.plan.schedule("tail", rows),
        ):
            for dispatch in schedule:
                made = figures.schedule(width, (dispatch,))
                key = (
                    part,
                    program.plan.kernels[dispatch.kernel].entry,
                    figures.dispatch(width, dispatch).format,
                )
                calls[key] += 1
                touched[key] += made.traffic.all
    return calls, touched


def run(program: WebGpuProgram) -> np.ndarray:
    return np.concatenate([run_chunks(program, IDS[a:b], 8, start=a) for a, b in ((0, 8), (8, 10), (10, 11))])


def assert_complete(program: WebGpuProgram) -> None:
    calls, touched = planned(program)
    kernels = profile_of(program).kernels()
    assert {(k.part, k.entry, k.format): k.calls for k in kernels} == calls
    assert {(k.part, k.entry, k.format): k.bytes for k in kernels} == touched
    assert all(math.isfinite(k.seconds) and k.seconds >= 0 for k in kernels)
    assert [k.seconds for k in kernels] == sorted((k.seconds for k in kernels), reverse=True)
    parts = profile_of(program).parts()
    assert [p.part for p in parts] == ["prompt", "decode"]
    for p in parts:
        assert p.dispatches == sum(k.calls for k in kernels if k.part == p.part)
        assert p.seconds == pytest.approx(sum(k.seconds for k in kernels if k.part == p.part))
        assert 0 < p.seconds <= p.wall * (1 + 1e-9)


def test_kernels_have_their_calls_times_and_bytes(timed_device: Device) -> None:
    program = load(timed_device)
    run(program)
    assert_complete(program)
    products = [k for k in profile_of(program).kernels() if "mat" in k.entry]
    assert {k.format for k in products} >= {"Q4_K"}
    assert all(k.operations > 0 and k.seconds > 0 for k in products)
    program.close()


def test_long_lists_are_cut(timed_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_AT_ONCE", 7)
    monkeypatch.setattr(profile, "_WAITING", 10)
    program = load(timed_device)
    made = run(program)
    assert_complete(program)
    program.close()
    monkeypatch.delenv("WGLLM_DEBUG")
    plain = load(timed_device)
    assert plain._profile is None
    assert np.array_equal(made, run(plain))
    plain.close()


def test_a_table_when_the_program_is_closed(timed_device: Device, capfd: pytest.CaptureFixture[str]) -> None:
    program = load(timed_device)
    run(program)
    assert capfd.readouterr().err == ""
    program.close()
    program.close()
    first, top, head, *rows, _, _, _, _ = capfd.readouterr().err.splitlines()
    assert first == f"WGLLM_DEBUG: kernels on {timed_device.adapter}"
    assert top.startswith("at best it reads 100.0 GB/s") and head.startswith("part    kernel")
    assert {row.split()[1] for row in rows} <= {k.entry for k in program.plan.kernels}
    load(timed_device).close()  # nothing has run
    assert capfd.readouterr().err == ""


def test_without_timestamps_each_dispatch_is_waited_for(
    own_device: Device, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = run(load(own_device))
    monkeypatch.setenv("WGLLM_DEBUG", "2")
    program = load(own_device)
    assert not profile_of(program).has_timestamps
    assert np.array_equal(run(program), expected)
    assert_complete(program)
    program.close()
    told = capfd.readouterr().err.splitlines()
    assert told[1] == "it has no timestamps: times are of a submission each, waiting for it too"


def test_a_roofline_that_can_not_be_measured_is_one_line(
    timed_device: Device, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(device: Device) -> Roofline:
        raise OutOfDeviceMemory("no memory")

    monkeypatch.setattr(profile, "measure", full)
    program = load(timed_device)
    run(program)
    program.close()
    assert capfd.readouterr().err == "WGLLM_DEBUG: no times of kernels: no memory\n"


def test_what_a_device_can_do_at_best_is_measured(own_device: Device) -> None:
    made = measure(own_device)
    for value in (made.read_bandwidth, made.copy_bandwidth, made.flops, made.gap):
        assert math.isfinite(value) and value > 0


def test_the_roofline_takes_less_memory_where_there_is_less(
    default_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, sizes = Device.buffer, []

    def buffer(device: Device, size: int, *args: object, **options: bool) -> object:
        sizes.append(size)
        if size > 16 << 20:
            raise OutOfDeviceMemory("no memory")
        return make(device, size, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Device, "buffer", buffer)
    assert measure(default_device).read_bandwidth > 0
    assert sizes.count(16 << 20) == 2 and max(sizes) > 16 << 20


def test_waiting_is_counted(own_device: Device) -> None:
    before = own_device.waited.seconds
    own_device.wait()
    assert own_device.waited.seconds > before
