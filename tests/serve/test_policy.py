"""The page's policy in a real browser: its worker starts, and text never becomes script."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serve.stand_ins import running
from tests.web.browser import NoBrowser, find_chromium
from wgllm.serve.static import static_routes

INDEX = """<!doctype html><title>x</title><script>window.inline = true</script>
<script type="module" src="/static/app.js"></script><body onload="window.handler = true"><p id="p"></p>"""
APP = """
const said = {inline: window.inline === true};
const tried = (name, what) => { try { what(); said[name] = "done"; } catch (e) { said[name] = e.name; } };
const started = (address) => new Promise((resolve, reject) => {
    const worker = new Worker(address, {type: "module"});
    worker.onmessage = (event) => resolve(event.data);
    worker.onerror = () => reject(new Error("no worker"));
});
tried("text", () => new Worker("/static/worker.js", {type: "module"}));
tried("html", () => { document.getElementById("p").innerHTML = "<img src=x onerror=alert(1)>"; });
tried("eval", () => eval("1"));
tried("policy", () => trustedTypes.createPolicy("other", {}));
const policy = trustedTypes.createPolicy("wgllm", {createScriptURL: (path) => path});
said.worker = await started(policy.createScriptURL("/static/worker.js"));
said.elsewhere = await fetch("http://127.0.0.1:9/").then(() => "done", (e) => e.name);
said.own = await fetch("/health").then((answer) => answer.status);
said.handler = window.handler === true;
window.said = said;
"""
WORKER = 'import {x} from "./part.js"; postMessage([x, isSecureContext, crossOriginIsolated]);'


def look(url: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        try:
            page = browser.new_page()
            page.goto(url)
            page.wait_for_function("() => window.said")
            said = page.evaluate("() => window.said")
        finally:
            browser.close()
    return dict(said)


def test_the_worker_starts_and_nothing_else_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_chromium()
    except NoBrowser as error:
        if os.environ.get("WGLLM_REQUIRE_BROWSER"):
            pytest.fail(str(error))
        pytest.skip(f"no browser: {error}")
    for name, text in (
        ("index.html", INDEX),
        ("app.js", APP),
        ("worker.js", WORKER),
        ("part.js", "export const x = 42;"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("wgllm.serve.app.static_routes", lambda: static_routes(tmp_path))
    # Playwright leaves an event loop running in its thread, where other tests could then start none.
    with running() as server, ThreadPoolExecutor(1) as thread:
        said = thread.submit(look, f"http://127.0.0.1:{server.port}/").result()
    assert said == {
        "inline": False,
        "handler": False,
        "text": "TypeError",
        "html": "TypeError",
        "eval": "EvalError",
        "policy": "TypeError",
        "worker": [42, True, True],
        "elsewhere": "TypeError",
        "own": 200,
    }
