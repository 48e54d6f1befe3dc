"""The browser that ``runtime.js`` is tested in."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.web.browser import BrowserPage, NoBrowser, opened
from tests.web.chat_page import ChatBrowser, chat_browser_opened

NO_BROWSER = "no browser with WebGPU"


@pytest.fixture(scope="session")
def browser_page() -> Iterator[BrowserPage]:
    """The test page in Chromium on a software adapter; skips where there is none."""
    try:
        with opened() as page:
            yield page
    except NoBrowser as error:
        without_browser(error)


@pytest.fixture(scope="session")
def chat_browser() -> Iterator[ChatBrowser]:
    """A Chromium for tests of the chat page, see ``chat_page.on_page``; skips where there is none."""
    try:
        with chat_browser_opened() as browser:
            yield browser
    except NoBrowser as error:
        without_browser(error)


def without_browser(error: NoBrowser) -> None:
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
