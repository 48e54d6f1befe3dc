"""The GPU that kernels are tested on."""

from __future__ import annotations

import pytest

from tests.kernels.gpu import Gpu
from wgllm.backends.device import Device


@pytest.fixture(scope="session")
def gpu(default_device: Device) -> Gpu:
    """With WebGPU's default limits, so that what runs here runs everywhere."""
    return Gpu(default_device)
