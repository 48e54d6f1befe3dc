"""What a device refuses is an error of ours, and the device then goes on as if nothing had been."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wgllm.backends.device import Call, Copy, Device, OutOfDeviceMemory
from wgllm.errors import DeviceError
from wgllm.graph import ROWS, GraphBuilder
from wgllm.lowering import PlanOptions, lower
from wgllm.plan import Limits
from wgllm.wgsl import Source, compose

TEXT = """
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn count(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < arrayLength(&out); i += groups.x * 64u) {
        out[i] = 3u * i;
    }
}
"""


def shader(text: str = TEXT) -> Source:
    return compose("kernels/k.wgsl", read={"kernels/k.wgsl": text}.__getitem__)


def prepared(device: Device, words: int = 100) -> tuple[Call, Copy]:
    """Words to count, and their way back."""
    pipeline = device.pipeline(shader(), "count")
    buffer = device.buffer(4 * words, "words")
    group = device.bind_group(pipeline, [(buffer, 0, 4 * words)], "count")
    return Call(pipeline, group, 2), Copy(
        buffer, 0, 4 * words, device.buffer(4 * words, "r", readback=True), 0
    )


def works(device: Device) -> bool:
    call, copy = prepared(device)
    device.submit([call], [copy])
    return np.array_equal(device.mapped(copy.target, copy.size).view(np.uint32), 3 * np.arange(100))


def too_large(device: Device) -> None:
    device.buffer(device.limits["max-buffer-size"] // 16 * 16 + 16, "much")


def far_too_large(device: Device) -> None:
    device.buffer(1 << 60, "very much")


def too_many_workgroups(device: Device) -> None:
    call, copy = prepared(device)
    device.submit([call._replace(groups=70_000)], [copy])


def a_binding_beyond_its_buffer(device: Device) -> None:
    device.bind_group(device.pipeline(shader(), "count"), [(device.buffer(64, "b"), 0, 128)], "count")


def a_binding_of_nothing(device: Device) -> None:
    device.bind_group(device.pipeline(shader(), "count"), [(device.buffer(64, "b"), 0, 0)], "count")


def a_copy_beyond_its_buffer(device: Device) -> None:
    _, copy = prepared(device)
    device.submit([], [copy._replace(size=4000)])


def a_bad_shader(device: Device) -> None:
    device.pipeline(shader(TEXT.replace("u32>;", "u33>;")), "count")


def a_shader_for_too_large_workgroups(device: Device) -> None:
    device.pipeline(shader(TEXT.replace("(64)", "(4096)")), "count")


@pytest.mark.parametrize("prebound", [True, False])
@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (too_large, "no buffer of .* MiB for much: Buffer size .* is greater than the maximum"),
        (far_too_large, "no buffer of .* MiB for very much: Buffer size"),
        (too_many_workgroups, "the graphics card refused a step: .*70000.*65535"),
        (a_binding_beyond_its_buffer, "can't bind the buffers of count: .*would overflow"),
        (a_binding_of_nothing, "can't bind the buffers of count: a part of no bytes"),
        (a_copy_beyond_its_buffer, "the graphics card refused a step: .*overrun"),
        (a_bad_shader, "shader kernels/k.wgsl:2: .*u33"),
        (a_shader_for_too_large_workgroups, "can't build count: .*workgroup size"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_refusal_is_an_error_and_the_device_goes_on(
    device: Device,
    prebound: bool,
    attempt: Callable[[Device], None],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    device = replace(device, prebound=prebound)
    for _ in range(2):
        with pytest.raises(DeviceError, match=message) as raised:
            attempt(device)
        assert raised.value.exit_code == 5 and "\n" not in str(raised.value)
        assert not isinstance(raised.value, OutOfDeviceMemory)
        assert works(device)
    assert capfd.readouterr().err == ""


def test_as_many_workgroups_as_there_may_be(device: Device) -> None:
    call, copy = prepared(device)
    device.submit([call._replace(groups=65_535)], [copy])
    assert device.mapped(copy.target, 40).view(np.uint32).tolist() == list(range(0, 30, 3))


def test_a_plan_that_would_need_more_workgroups_comes_round_again(own_device: Device) -> None:
    rows = 70_001  # of 64 numbers: one workgroup each
    builder = GraphBuilder()
    builder.output(builder.op("y", "scale", builder.input("x", (ROWS, 64), "f32"), factor=3.0))
    options = PlanOptions({}, 1, rows, limits=Limits.of(own_device.limits))
    plan = lower(builder.build(), options)
    (dispatch,) = plan.schedule("body", rows)[1]
    assert dispatch.groups == 65_535
    kernel = plan.kernels[dispatch.kernel]
    buffers = [own_device.buffer(b.size, b.name) for b in plan.buffers]
    x = np.arange(rows * 64, dtype=np.float32)
    own_device.write(buffers[plan.inputs["x"].region.buffer], 0, x)
    pipeline = own_device.pipeline(kernel.source, kernel.entry)
    group = own_device.bind_group(
        pipeline, [(buffers[b], at, size) for b, at, size in dispatch.bindings], "y"
    )
    back = own_device.buffer(x.nbytes, "r", readback=True)
    output = buffers[plan.outputs["y"].region.buffer]
    own_device.submit([Call(pipeline, group, dispatch.groups)], [Copy(output, 0, x.nbytes, back, 0)])
    assert np.array_equal(own_device.mapped(back, x.nbytes).view(np.float32), 3 * x)


SHORT_OF_MEMORY = """
import resource
from pathlib import Path
import numpy as np
from tests.conftest import open_device
from tests.kernels.test_device_errors import works
from wgllm.backends.device import OutOfDeviceMemory

device = open_device(default_limits=False)
assert works(device)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
for _ in range(3):
    buffers = []
    try:
        while len(buffers) < 20:
            buffers.append(device.buffer(100 << 20, "much"))
            device.wait()
    except OutOfDeviceMemory as error:
        message = str(error)
    assert 2 <= len(buffers) < 7, len(buffers)
    for buffer in buffers:
        buffer.destroy()
    assert works(device)
print(message)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux can a process be kept short of memory so")
@pytest.mark.usefixtures("own_device")
def test_memory_that_runs_out_is_an_error_of_its_own(own_device: Device) -> None:
    if own_device.adapter.kind != "software":
        pytest.skip("a graphics card has memory of its own")
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        # Each thread's heap would reserve addresses, which count.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no buffer of 100.0 MiB for much: the graphics card has no memory left\n"


LOST = """
from tests.conftest import open_device
from tests.kernels.test_device_errors import prepared
from wgllm.errors import DeviceError
import numpy as np

for attempt in ("buffer", "submit", "write", "mapped", "pipeline"):
    device = open_device(default_limits=False)
    call, copy = prepared(device)
    device.submit([call], [copy])
    device.wait()
    device.handle.destroy()
    try:
        if attempt == "buffer":
            device.buffer(64, "b")
        elif attempt == "submit":
            device.submit([call], [copy])
        elif attempt == "write":
            device.write(copy.source, 0, np.zeros(4, np.uint32))
        elif attempt == "mapped":
            device.mapped(copy.target, copy.size)
        else:
            prepared(device)
    except DeviceError as error:
        print(attempt, error)
"""


@pytest.mark.usefixtures("own_device")
def test_a_device_that_is_lost_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    told = [line.split()[0] for line in lines if "Parent device is lost" in line]
    assert told == ["buffer", "submit", "write", "mapped", "pipeline"], done.stdout
