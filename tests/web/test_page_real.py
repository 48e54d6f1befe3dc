"""The page as it is served, with real models on the browser's own WebGPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import wgllm
from tests.tolerances import WEBGPU_F32_KV
from tests.web.chat_page import ChatPage
from tests.web.chromium import Chromium
from tests.web.wgllm_process import ServerProcess, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

CASES = ("capital", "once", "code")
COUNT = 12
GREEDY = {"temperature": 0, "topK": 40, "topP": 0.95, "minP": 0.05, "seed": None, "maxTokens": COUNT}
# Compiling shaders and computing tokens on two busy cores.
PATIENCE_MS = 1_200_000
QUESTIONS = ("What is the capital of France?", "And of Italy?")
GENERATE = """async ({ sampling }) => {
    const made = { tokens: [], text: "" };
    for await (const event of wgllmPage.model.generate([{ role: "user", content: "" }], sampling, {})) {
        if (event.type === "text") {
            made.tokens.push(event.token);
            made.text += event.text;
        } else if (event.type === "end") {
            made.reason = event.reason;
        }
    }
    return made;
}"""


class RealPage(ChatPage):
    """The page of a server that runs, which can ask no other."""

    def __init__(self, browser: Browser, server: ServerProcess) -> None:
        self.context = browser.new_context(viewport={"width": 1100, "height": 800}, reduced_motion="reduce")
        super().__init__(self.context.new_page(), server, {})
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
        sampling = json.dumps({"temperature": 0, "maxTokens": COUNT})
        self.page.add_init_script(f"localStorage.setItem('wgllm.sampling', {json.dumps(sampling)})")

    def continued(self, ids: list[int]) -> dict[str, Any]:
        """The COUNT likeliest tokens after a prompt of these ids, and their text."""

        def prompt(route: Route) -> None:
            route.fulfill(json={"tokens": ids})

        self.page.route("**/api/chat_tokens", prompt)
        try:
            return self.page.evaluate(GENERATE, {"sampling": GREEDY})
        finally:
            self.page.unroute("**/api/chat_tokens", prompt)


def on_real_page(model: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes of ``test(chat, path, ...)`` a test of the page with that model, which is loaded."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.model(model)
        def run(
            chromium: Chromium,
            model_path: Callable[[str], Path],
            reference: Callable[[str], Any],
        ) -> None:
            path = model_path(model)

            def within(browser: Browser) -> None:
                with serving("-m", str(path), "--lazy", "--backend", "numpy") as server:
                    chat = RealPage(browser, server)
                    try:
                        chat.open()
                        test(chat, path, reference(model))
                        chat.check()
                    finally:
                        chat.context.close()

            chromium.call(within)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


def assert_expected(chat: RealPage, path: Path, reference: dict[str, Any]) -> None:
    """Greedy tokens of the prompts are Python's, and so is their text."""
    with wgllm.load(path, backend="numpy") as llm:
        for case in (reference[name] for name in CASES):
            assert min(case["greedy_margins"][:COUNT]) > 2 * WEBGPU_F32_KV
            events = list(llm.generate(case["ids"], max_tokens=COUNT, temperature=0, continuation=False))
            made = chat.continued(case["ids"])
            assert made["tokens"] == [e.token_id for e in events[:-1]] == case["greedy"][:COUNT]
            assert made["text"] == "".join(event.text for event in events)
            assert made["reason"] == "length"


@on_real_page("smollm2")
def test_smollm2(chat: RealPage, path: Path, reference: dict[str, Any]) -> None:
    """Tokens, a chat of two turns, a reload, and the server where the card is lost: one page goes through all."""
    assert isinstance(chat.server, ServerProcess)
    assert_expected(chat, path, reference)

    for question in QUESTIONS:
        chat.say(question)
    shown = chat.texts()
    assert shown == [text for turn in zip(QUESTIONS, replies(path), strict=True) for text in turn]
    # What the second turn had to read: its question, and the frame around it.
    stats = chat.page.evaluate(
        "() => { const { chat } = wgllmPage.app.chats; return chat.messages[chat.leaf].stats; }"
    )
    assert 0 < stats["promptTokens"] - stats["cachedTokens"] < 30

    assert chat.server.asked("GET /api/plans/[^ ]*/weights 206") > 0
    chat.server.forget()
    chat.page.reload()
    chat.page.wait_for_selector('#where[data-phase="ready"]')
    assert chat.texts() == shown
    assert chat.server.asked("GET /api/plans/[^ ]*/pieces") == 1
    assert chat.server.asked("GET /api/plans/[^ ]*/weights") == 0

    chat.page.evaluate("() => wgllmPage.model.destroyDevice()")
    panel = chat.page.wait_for_selector("#dock-panel:has-text('graphics card')")
    assert panel is not None
    chat.page.get_by_role("button", name="server").first.click()
    chat.page.wait_for_selector('#where[data-phase="ready"]')
    chat.say("Name a colour.")
    assert chat.server.asked("POST /v1/chat/completions 200") == 1
    assert len(chat.texts()) == 6 and chat.texts()[-1]


@on_real_page("gemma3:270m")
def test_gemma3(chat: RealPage, path: Path, reference: dict[str, Any]) -> None:
    assert_expected(chat, path, reference)


def replies(path: Path) -> list[str]:
    """Python's replies to the questions, one after the other."""
    messages: list[dict[str, Any]] = []
    with wgllm.load(path, backend="numpy") as llm:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            said = "".join(e.text for e in llm.chat(messages, temperature=0, max_tokens=COUNT))
            messages.append({"role": "assistant", "content": said})
    return [m["content"] for m in messages if m["role"] == "assistant"]
