"""The page's policy in a real browser: its worker starts, and text never becomes script."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.stand_ins import running
from tests.web.chromium import Chromium
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


def test_the_worker_starts_and_nothing_else_runs(
    chromium: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("index.html", INDEX),
        ("app.js", APP),
        ("worker.js", WORKER),
        ("part.js", "export const x = 42;"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("wgllm.serve.app.static_routes", lambda: static_routes(tmp_path))
    with running() as server:
        tab = chromium.tab(f"{server.url}/", "said")
        said = tab.evaluate("() => window.said")
        tab.close()
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
