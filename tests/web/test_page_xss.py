"""Foreign text on the chat page: nothing in it runs, whoever says it, in one piece or token by token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.web.chat_page import ChatPage, on_page
from wgllm.serve.static import FOLDER as WEB

RUN = "window.canary++"
# Templates, in which {0} is what should never run: `handlers`, `html`, `markdown`; `twice`: what changes its meaning
# when it is parsed a second time; `schemes`, which stand in each of the `places` where Markdown has addresses.
TEMPLATES: dict[str, list[str]] = json.loads(Path(__file__).with_name("xss.json").read_text(encoding="utf-8"))
CORPUS = [
    *(t.format(RUN) for kind in ("handlers", "html", "twice", "markdown") for t in TEMPLATES[kind]),
    *(place.replace("{}", s.format(RUN)) for s in TEMPLATES["schemes"] for place in TEMPLATES["places"]),
]
SOME = CORPUS[::9]

MESSAGES = ".message > :is(.said, .body, .thought)"
LIVE = ":is(img, iframe, object, embed, script, style, link, base, meta, form form, math)"


def test_the_corpus_is_one() -> None:
    assert len(set(CORPUS)) == len(CORPUS) >= 150


@on_page()
def test_what_should_not_be_would_be_seen(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    page.evaluate(
        """() => {
            window.box = document.createElement("div");
            box.append(Object.assign(new Image(), { src: "data:," }), document.createElement("a"));
            box.lastChild.href = "javascript:window.canary++";
        }"""
    )
    assert page.evaluate("() => checks.strange(box)") == ["IMG", "A href=javascript:window.canary++"]
    # Were there HTML, it would not even be parsed; were there such a link, the policy would stop it and tell.
    assert (
        page.evaluate("() => { try { box.innerHTML = '<b>x'; } catch (error) { return error.name; } }")
        == "TypeError"
    )
    page.evaluate("() => { document.body.append(box); box.lastChild.click(); box.remove(); }")
    for told in ("require-trusted-types-for", "script-src"):
        chat.eventually("(told) => violations.some((each) => each.startsWith(told))", told)
    assert page.evaluate("() => violations.length") == 2
    page.evaluate("() => { violations.length = 0; }")


@on_page(fake={"reply": CORPUS[-1]})
def test_messages_of_both_sides(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    page.evaluate("(texts) => checks.fillChat(texts)", CORPUS[:-1])
    chat.say(CORPUS[-1])
    assert page.locator(".assistant").count() == len(CORPUS)
    strange = "(selector) => Array.from(document.querySelectorAll(selector)).flatMap(checks.strange)"
    assert page.evaluate(strange, MESSAGES) == []
    assert page.locator(f"#main {LIVE}").count() == 0
    # What a user wrote stands there as it was written.
    written = page.eval_on_selector_all(".user .body", "(all) => all.map((each) => each.textContent)")
    plain = [(text, shown) for text, shown in zip(CORPUS, written, strict=True) if text.isprintable()]
    assert len(plain) > 150 and [text for text, shown in plain if text != shown] == []
    # No reply is lost either: its words are all there, as text.
    said = "\n".join(page.eval_on_selector_all(".said", "(all) => all.map((each) => each.textContent)"))
    assert said.count("onerror=window.canary++") > 20 and said.count("<script>window.canary++</script>") > 10


@on_page()
def test_messages_that_come_token_by_token(chat: ChatPage) -> None:
    chat.open()
    assert chat.page.evaluate("(texts) => checks.growingStrangely(texts)", CORPUS) == []
    # A few through the whole page, with frames between the tokens.
    chat.set(reply="\n\n".join([*CORPUS[1:60:20], "[x](javascript:1)"]), pause=1)
    chat.say("Go")
    assert chat.page.evaluate("() => checks.strange(document.querySelector('.said'))") == []


@on_page()
def test_what_the_server_says(chat: ChatPage) -> None:
    names = ("name", "license", "quantization", "architecture", "id", "version")
    chat.server.model.update(zip(names, SOME[: len(names)], strict=True))
    chat.open()
    assert chat.page.inner_text("#model-name") == SOME[0]
    chat.page.click("#where")
    chat.page.wait_for_selector("#card[open]")
    assert SOME[3] in chat.page.inner_text("#card")
    chat.page.keyboard.press("Escape")
    for text in SOME:
        chat.page.evaluate(
            "(text) => wgllmPage.compute.fail(Object.assign(new Error(text), { kind: 'lost' }))", text
        )
        assert chat.page.locator(f"#main {LIVE}, #panel a").count() == 0
    chat.set(generateError={"after": 0, "kind": "numbers", "message": SOME[1]})
    chat.page.evaluate("() => wgllmPage.compute.choose('gpu')")
    chat.say("Go")
    assert chat.page.evaluate("() => checks.strange(document.querySelector('.fault'))") == ["B"]
    assert SOME[1] in chat.page.inner_text(".fault")


@on_page()
def test_chats_from_files(chat: ChatPage) -> None:
    page = chat.page
    chat.open()
    files: list[dict[str, Any]] = []
    for i, text in enumerate(SOME):
        message = {
            "content": text,
            "state": "complete",
            "created": 1,
            "model": text,
            "finish_reason": text,
            "extra": text,
        }
        data = {
            "format": "wgllm-conversation", "version": 1, "title": text, "named": True, "created": 1, "updated": i,
            "model": text, "system_prompt": text, "settings": {"x": text}, "draft": text, "leaf": 1,
            "messages": [
                {**message, "role": "user", "parent": None},
                {**message, "role": "assistant", "parent": 0, "stats": {"generatedTokens": text}},
            ],
            "__proto__": {"x": text},
        }  # fmt: skip
        files.append(as_file(f"{i}.json", json.dumps(data)))
    page.set_input_files("#import-file", [*files, as_file("<img src=x onerror=canary++>.json", "[]")])  # type: ignore[list-item]
    page.wait_for_selector(".toasts p")
    chat.eventually("(n) => document.querySelectorAll('.chats .go').length === n", len(files))
    page.click(".chats .more >> nth=0")
    page.keyboard.press("Enter")
    page.keyboard.insert_text(SOME[5])
    page.keyboard.press("Enter")
    chat.eventually("(title) => document.querySelector('.chats .go').textContent === title", SOME[5])
    assert page.locator(f"body {LIVE}").count() == 0
    assert page.evaluate("() => ({}).x === undefined")


def as_file(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/json", "buffer": text.encode()}


def test_the_library_is_the_one_that_is_named() -> None:
    told = (WEB / "vendor" / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256((WEB / "vendor" / "marked.js").read_bytes()).hexdigest() in told


def test_no_module_makes_html_of_text() -> None:
    ways = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "srcdoc",
        "eval(",
        "new Function",
    )
    own = [p for p in WEB.rglob("*.js") if p.parent.name != "vendor"]
    assert len(own) > 25
    assert [(p.name, way) for p in own for way in ways if way in p.read_text(encoding="utf-8")] == []
    assert "marked.js" not in "".join(p.read_text(encoding="utf-8") for p in own if p.name != "markdown.js")
