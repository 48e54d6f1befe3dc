"""Which adapter is taken, and what wgpu's refusals become."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.gpu import Gpu
from wgllm.backends.device import Adapter, Device, ShaderError, adapters, choose
from wgllm.backends.native import Readback
from wgllm.errors import DeviceError, UsageError
from wgllm.wgsl import Source, compose


def adapter(index: int, name: str, kind: str) -> Adapter:
    return Adapter(index, name, kind, "Vulkan", None)


SOFTWARE = adapter(0, "llvmpipe", "software")
INTEGRATED = adapter(1, "Intel UHD", "integrated")
DISCRETE = adapter(2, "Radeon RX 7600", "discrete")
SECOND = adapter(3, "Radeon RX 6400", "discrete")
UNKNOWN = adapter(4, "Virtio", "unknown")


@pytest.mark.parametrize(
    ("found", "software", "taken"),
    [
        ([SOFTWARE, INTEGRATED, DISCRETE, SECOND], False, DISCRETE),
        ([SOFTWARE, UNKNOWN, INTEGRATED], False, INTEGRATED),
        ([SOFTWARE, UNKNOWN], True, UNKNOWN),
        ([SOFTWARE], True, SOFTWARE),
    ],
)
def test_the_best_kind_is_taken(found: list[Adapter], software: bool, taken: Adapter) -> None:
    assert choose(found, software=software) is taken


@pytest.mark.parametrize(
    ("wanted", "taken"), [("3", SECOND), ("radeon", DISCRETE), ("6400", SECOND), ("0", SOFTWARE)]
)
def test_one_is_taken_by_index_or_name(wanted: str, taken: Adapter) -> None:
    assert choose([SOFTWARE, INTEGRATED, DISCRETE, SECOND], wanted) is taken


@pytest.mark.parametrize("wanted", ["7", "nvidia", "", "-1"])
def test_one_that_is_not_there(wanted: str) -> None:
    with pytest.raises(UsageError, match=r"no graphics card .*\(0: llvmpipe, 1: Intel UHD\)"):
        choose([SOFTWARE, INTEGRATED], wanted)


def test_software_is_taken_only_when_asked_for() -> None:
    with pytest.raises(DeviceError, match="only a software adapter"):
        choose([SOFTWARE])
    with pytest.raises(DeviceError, match="no driver shows one") as raised:
        choose([], software=True)
    assert raised.value.exit_code == 5


def test_no_driver_is_no_noise() -> None:
    """Without a single Vulkan driver: an empty list, and nothing written."""
    code = "from wgllm.backends.device import adapters; assert adapters() == [], adapters()"
    nowhere = {"VK_ICD_FILENAMES": "/nonexistent.json", "VK_DRIVER_FILES": "/nonexistent.json"}
    if sys.platform != "linux":
        pytest.skip("only on Linux can Vulkan's drivers be hidden")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env=os.environ | nowhere,
    )
    assert (done.returncode, done.stdout) == (0, "")
    if sys.version_info >= (3, 11):  # wgpu 0.31, Python 3.10's last, writes of extensions that it misses
        assert done.stderr == ""


def broken(library: str) -> Source:
    files = {
        "kernels/k.wgsl": '//!include "lib/l.wgsl"\n@compute @workgroup_size(1)\nfn k() {\n    f();\n}\n',
        "lib/l.wgsl": library,
    }
    return compose("kernels/k.wgsl", read=files.__getitem__)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fn g() {}\nfn f() { let x = nothing; }",
            "shader lib/l.wgsl:2: no definition in scope for identifier: `nothing`",
        ),
        ("fn f() {\n    let x = ;\n}", 'shader lib/l.wgsl:2: expected expression, found ";"'),
        (
            "fn g() {}\nfn f() -> f32 {\n    return vec2<f32>();\n}",
            "shader lib/l.wgsl:3: The `return` expression",
        ),
    ],
)
def test_a_shader_that_does_not_compile(
    gpu: Gpu, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ShaderError) as raised:
        gpu.device.shader(broken(text))
    line = message.split(":")[1]
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert f"> lib/l.wgsl:{line}" in raised.value.listing
    assert text.splitlines()[int(line) - 1] in raised.value.listing
    assert raised.value.exit_code == 5
    monkeypatch.setenv("WGLLM_DEBUG", "1")
    with pytest.raises(ShaderError) as raised:
        gpu.device.shader(broken(text))
    assert str(raised.value).endswith(raised.value.listing)


def test_other_refusals_are_device_errors(gpu: Gpu) -> None:
    good = compose(
        "kernels/k.wgsl", read={"kernels/k.wgsl": "@compute @workgroup_size(1)\nfn k() {}\n"}.__getitem__
    )
    with pytest.raises(DeviceError, match="can't build nothing: Unable to find entry point 'nothing'"):
        gpu.device.pipeline(good, "nothing")
    large = compose("k", read={"k": "@compute @workgroup_size(512)\nfn k() {}\n"}.__getitem__)
    with pytest.raises(DeviceError, match="workgroup size"):
        gpu.device.pipeline(large, "k")


def test_a_device_has_the_limits_of_its_adapter_or_the_least(gpu: Gpu) -> None:
    assert gpu.device.limits["max-storage-buffers-per-shader-stage"] == 8
    assert gpu.device.limits["max-compute-workgroup-storage-size"] == 16384
    best = choose(adapters(), software=True)
    full = Device.open(best, features=["subgroup", "no-such-feature"])
    for name in ("max-storage-buffer-binding-size", "max-compute-invocations-per-workgroup"):
        assert full.limits[name] == best.handle.limits[name]
    assert "no-such-feature" not in full.features


@pytest.mark.parametrize("following", ["seconds", "wait"])
def test_a_number_that_nobody_waited_for_is_not_in_the_way(
    own_device: Device, monkeypatch: pytest.MonkeyPatch, following: str
) -> None:
    """wgpu-native ends a process that copies to a buffer which is still on its way to the host."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Readback, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own_device.seconds([])
    if following == "seconds":
        assert own_device.seconds([]) > 0
    else:
        own_device.wait()
    assert not own_device._unread
