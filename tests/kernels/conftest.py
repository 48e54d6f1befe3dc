"""The GPU that kernels are tested on."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.kernels.gpu import Gpu
from wgllm.backends.device import Device, adapters, choose

NO_ADAPTER = "no Vulkan, Metal or DirectX 12 adapter"


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """A real graphics card, else a software adapter, with WebGPU's default limits; skips where there is neither."""
    found = adapters()
    if not found:
        if os.environ.get("WGLLM_REQUIRE_ADAPTER"):  # CI, which has installed one
            pytest.fail(NO_ADAPTER)
        pytest.skip(NO_ADAPTER)
    return Gpu(Device.open(choose(found, software=True), default_limits=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests without a GPU are skipped at one place, so that the summary has one line for all of them."""
    report = yield
    if report.skipped and NO_ADAPTER in str(report.longrepr):
        report.longrepr = (__file__, 20, f"Skipped: {NO_ADAPTER}")
    return report
