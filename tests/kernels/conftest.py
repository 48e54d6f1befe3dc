"""The GPU that kernels are tested on."""

from __future__ import annotations

import pytest

from tests.kernels.gpu import Gpu
from wgllm.backends.device import Device


@pytest.fixture(scope="session")
def gpu(default_device: Device) -> Gpu:
    """With WebGPU's default limits, so that what runs here runs everywhere."""
    return Gpu(default_device)


@pytest.fixture(scope="session")
def subgroup_gpu(default_device: Device) -> Gpu:
    """The same with subgroups, where the adapter has them."""
    device = Device.open(default_device.adapter, ["subgroup"], default_limits=True)
    if not device.features:
        pytest.skip("this adapter has no subgroups")
    return Gpu(device)
