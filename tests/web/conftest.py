"""The page that ``runtime.js`` is tested on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import without_browser
from tests.web.browser import BrowserPage, opened
from tests.web.chromium import Chromium, NoBrowser


@pytest.fixture(scope="session")
def browser_page(chromium: Chromium) -> Iterator[BrowserPage]:
    """The test page, which tests share; skips where the browser has no WebGPU."""
    try:
        with opened(chromium) as page:
            yield page
    except NoBrowser as error:
        without_browser(error)
