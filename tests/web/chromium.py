"""A headless Chromium with WebGPU in software: one for all tests of a process, which open tabs of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# WebGPU on a software adapter, which browsers do not offer by themselves.
FLAGS = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
# What a page comes to is waited for so long, in milliseconds: a machine may be busy.
PATIENCE_MS = 60_000
# For the administrator, in whose name containers often run, Chromium has no sandbox.
AS_ROOT = ("--no-sandbox",)

T = TypeVar("T")


class NoBrowser(Exception):
    """Why there is no browser to test in."""


class Chromium:
    """It is used from a thread of its own: Playwright leaves an event loop in it, where other tests could then start
    none."""

    def __init__(self, thread: ThreadPoolExecutor, browser: Browser) -> None:
        self._thread = thread
        self._browser = browser

    def call(self, work: Callable[[Browser], T]) -> T:
        """Runs a function of the browser in that thread."""
        return self._thread.submit(work, self._browser).result()

    def tab(self, url: str, ready: str, *, script: Path | None = None) -> Tab:
        """A fresh tab, which shares no storage with others, at an address, when ``window`` has the name ``ready``.
        ``script`` runs in every document of it before all else."""

        def made(browser: Browser) -> Tab:
            page = browser.new_context().new_page()
            page.set_default_timeout(PATIENCE_MS)
            if script is not None:
                page.add_init_script(path=script)
            return Tab(self, page, ready)

        tab = self.call(made)
        try:
            tab.go(url)
        except BaseException:
            tab.close()
            raise
        return tab


class Tab:
    """An open page."""

    def __init__(self, chromium: Chromium, page: Page, ready: str) -> None:
        """In the browser's thread."""
        self._chromium = chromium
        self._page = page
        self._ready = ready
        self.problems: list[str] = []
        """What was not caught, and what the console has against the page."""
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)

    def evaluate(self, script: str, argument: object = None) -> Any:
        """What a JavaScript function gives for ``argument``, both as JSON."""
        return self._chromium.call(lambda _: self._page.evaluate(script, argument))

    def go(self, url: str) -> None:
        """Also to where it is: a reload."""
        self._chromium.call(lambda _: self._go(url))

    def close(self) -> None:
        self._chromium.call(lambda _: self._page.context.close())

    def _go(self, url: str) -> None:
        self._page.goto(url)
        try:
            self._page.wait_for_function(f"() => window.{self._ready}")
        except Exception as error:  # a mistake in a module, as a rule, which leaves the page empty
            raise AssertionError(f"{url} has no window.{self._ready}: {self.problems}") from error


@contextlib.contextmanager
def launched(flags: Sequence[str] = FLAGS) -> Iterator[Chromium]:
    """Raises NoBrowser."""
    opened = contextlib.ExitStack()
    with ThreadPoolExecutor(1, "chromium") as thread:
        try:
            yield Chromium(thread, thread.submit(_launch, opened, flags).result())
        finally:
            thread.submit(opened.close).result()


def _launch(stack: contextlib.ExitStack, flags: Sequence[str]) -> Browser:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise NoBrowser("playwright is not installed") from error
    executable = _executable()
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    playwright = stack.enter_context(sync_playwright())
    try:
        browser = playwright.chromium.launch(
            executable_path=executable, args=[*flags, *(AS_ROOT if as_root else ())], timeout=2 * PATIENCE_MS
        )
    except Error as error:
        raise NoBrowser(f"{executable} can't be used: {str(error).splitlines()[0]}") from error
    stack.callback(browser.close)
    return browser


def _executable() -> str:
    """The path of a Chromium: WGLLM_CHROMIUM, or one of the usual names."""
    if chosen := os.environ.get("WGLLM_CHROMIUM"):
        return chosen
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise NoBrowser("no Chromium")
