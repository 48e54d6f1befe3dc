"""The page as it is served, with SmolLM2 on Firefox's own WebGPU; skips where no Firefox with WebGPU is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.web.firefox import ENTER, Firefox, NoFirefox, firefox
from tests.web.test_page_real import CASES, COUNT, GENERATE, GREEDY, QUESTIONS, replies
from tests.web.wgllm_process import serving

READY = "document.querySelector('#where').dataset.phase === 'ready'"
TEXTS = "[...document.querySelectorAll('.message > :is(.said, .body)')].map((each) => each.innerText.trim())"
BUTTONS = "[...document.querySelectorAll('#dock-panel button')]"
# What generates without a prompt's template: the server's answer is made here.
WITH_TOKENS = """(async () => {
    const { fetch } = window;
    window.fetch = (url, how) => String(url).includes("api/chat_tokens")
        ? Promise.resolve(Response.json({ tokens: %s })) : fetch(url, how);
    try {
        return await (%s)(%s);
    } finally {
        window.fetch = fetch;
    }
})()"""


def say(page: Firefox, text: str) -> None:
    """And waits for the reply."""
    shown = len(page.evaluate(TEXTS))
    page.evaluate("document.querySelector('textarea').focus()")
    page.type(text + ENTER)
    page.wait_for(f"{TEXTS}.length === {shown + 2} && !wgllmPage.app.chats.busy")


@pytest.mark.model("smollm2")
def test_smollm2(
    tmp_path: Path, model_path: Callable[[str], Path], reference: Callable[[str], dict[str, Any]]
) -> None:
    path = model_path("smollm2")
    try:
        with firefox(tmp_path) as page, serving("-m", str(path), "--lazy", "--backend", "numpy") as server:
            page.go(server.url + "?test")
            if not page.evaluate("navigator.gpu ? navigator.gpu.requestAdapter().then(Boolean) : false"):
                raise NoFirefox("this Firefox has no WebGPU")
            sampling = json.dumps({"temperature": 0, "maxTokens": COUNT})
            page.evaluate(f"localStorage.setItem('wgllm.sampling', {json.dumps(sampling)})")
            page.reload()
            page.wait_for(READY)

            for case in (reference("smollm2")[name] for name in CASES):
                asked = json.dumps({"sampling": GREEDY})
                made = page.evaluate(WITH_TOKENS % (json.dumps(case["ids"]), GENERATE, asked))
                assert made["tokens"] == case["greedy"][:COUNT]

            for question in QUESTIONS:
                say(page, question)
            shown = page.evaluate(TEXTS)
            assert shown == [text for turn in zip(QUESTIONS, replies(path), strict=True) for text in turn]

            server.forget()
            page.reload()
            page.wait_for(READY)
            page.wait_for(f"{TEXTS}.length === {len(shown)}")
            assert page.evaluate(TEXTS) == shown
            assert server.asked("GET /api/plans/[^ ]*/pieces") == 1
            assert server.asked("GET /api/plans/[^ ]*/weights") == 0

            page.evaluate("wgllmPage.model.destroyDevice()")
            page.wait_for("document.querySelector('#dock-panel')?.innerText.includes('graphics card')")
            page.evaluate(f"{BUTTONS}.find((each) => /server/.test(each.innerText)).click()")
            page.wait_for(READY)
            say(page, "Name a colour.")
            assert server.asked("POST /v1/chat/completions 200") == 1
    except NoFirefox as error:
        pytest.skip(str(error))
