"""The browser that ``runtime.js`` is tested in."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.web.browser import BrowserPage, NoBrowser, opened

NO_BROWSER = "no browser with WebGPU"


@pytest.fixture(scope="session")
def browser_page() -> Iterator[BrowserPage]:
    """The test page in Chromium on a software adapter; skips where there is none."""
    try:
        with opened() as page:
            yield page
    except NoBrowser as error:
        if os.environ.get("WGLLM_REQUIRE_BROWSER"):  # CI, which has installed one
            pytest.fail(f"{NO_BROWSER}: {error}")
        pytest.skip(f"{NO_BROWSER}: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests without a browser are skipped at one place, so that the summary has one line for all of them."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and NO_BROWSER in report.longrepr[2]:
        report.longrepr = (__file__, 24, report.longrepr[2])
    return report
