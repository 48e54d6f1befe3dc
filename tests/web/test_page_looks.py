"""The chat page as a visitor meets it: keys, branches, errors, both themes, phones. The model is a fake."""

from __future__ import annotations

import json

import pytest

from tests.web.chat_page import PATIENT, ChatPage, on_page
from wgllm.sessions_export import from_json

LINE = "A line of a long reply.\n\n"
# It ends when it is stopped: for all of it the fake model takes minutes.
ENDLESS = LINE * 6000
ALL_OF_IT = """# Title

Text with **bold**, *italics*, `code` and a [link](https://example.com).

- one
- two

```python
print("x")
```

| Left | Right |
|:-----|------:|
| a | 1 |

> A quote
"""


# A conversation


@on_page()
def test_two_turns_by_keys_alone(chat: ChatPage) -> None:
    chat.open()
    keys = chat.page.keyboard
    keys.type("Hello")
    keys.press("Shift+Enter")
    keys.type("there")
    keys.press("Enter")
    chat.settle()
    keys.type("Again")
    keys.press("Enter")
    chat.settle()
    assert chat.texts() == ["Hello\nthere", "You said: Hello there", "Again", "You said: Again"]
    asked = chat.page.evaluate("() => asked[1]")
    assert [m["role"] for m in asked["messages"]] == ["user", "assistant", "user"]
    # What the model said goes back as the tokens that it was made of.
    assert asked["messages"][1]["tokenIds"][0] == 101
    assert asked["sampling"]["temperature"] == 0.7


@on_page(fake={"reply": "kept words and many more to come", "holdAfter": 2})
@pytest.mark.parametrize("by", ["Escape", "#stop"])
def test_stopping_keeps_the_text(chat: ChatPage, by: str) -> None:
    chat.open()
    chat.say("Go", wait=False)
    chat.eventually("() => document.querySelector('.assistant .said')?.innerText.startsWith('kept')")
    assert chat.page.is_hidden("#send")
    if by == "Escape":
        chat.page.keyboard.press("Escape")
    else:
        chat.page.click(by)
    chat.settle()
    assert chat.texts()[1] == "kept word"
    assert chat.page.inner_text(".assistant .mark") == "Stopped"
    assert chat.page.is_visible("#send")


@on_page(fake={"reply": ["first", "second", "third", "fourth"]})
def test_another_reply_and_an_edit_are_branches(chat: ChatPage) -> None:
    chat.open()
    chat.say("one?")
    chat.page.keyboard.press("Alt+r")
    chat.settle()
    assert chat.texts() == ["one?", "second"]
    assert chat.page.inner_text(".assistant .branches") == "2/2"
    chat.page.click('.assistant [aria-label="Previous version"]')
    assert chat.texts() == ["one?", "first"]
    chat.say("two?")
    assert chat.texts() == ["one?", "first", "two?", "third"]
    chat.page.press("#input", "ArrowUp")  # of an empty field: edits the last message
    chat.page.fill(".edit textarea", "two, edited?")
    chat.page.keyboard.press("Enter")
    chat.settle()
    assert chat.texts() == ["one?", "first", "two, edited?", "fourth"]
    assert [m["content"] for m in chat.page.evaluate("() => asked.at(-1).messages")] == [
        "one?",
        "first",
        "two, edited?",
    ]
    chat.page.locator(".user").nth(1).hover()
    chat.page.locator('.user [aria-label="Previous version"]').click()
    assert chat.texts() == ["one?", "first", "two?", "third"]
    chat.eventually(
        "() => wgllmPage.store.get(location.hash.slice(1)).then((c) => c.leaf === wgllmPage.app.chats.chat.leaf)"
    )
    chat.page.reload()
    chat.page.wait_for_selector(".assistant")
    assert chat.texts() == ["one?", "first", "two?", "third"]


@on_page(fake={"hold": True})
def test_a_message_that_is_sent_while_the_model_loads_waits_for_it(chat: ChatPage) -> None:
    chat.open(phase="loading")
    chat.say("Early", wait=False)
    chat.page.wait_for_selector(".waiting")
    assert chat.page.is_visible("#dock-panel .progress")
    assert chat.page.inner_text(".waiting").startswith("Waiting for the model")
    assert chat.page.inner_text("#figures") == ""  # once is enough
    chat.set(hold=False)
    chat.settle()
    assert chat.texts()[-1] == "You said: Early"


@on_page(fake={"hold": True})
def test_loading_that_is_stopped_can_go_on(chat: ChatPage) -> None:
    chat.open(phase="loading")
    chat.say("Early", wait=False)
    chat.page.click("#dock-panel >> text=Cancel")
    chat.settle()
    assert chat.page.inner_text(".assistant .mark") == "Stopped"
    chat.set(hold=False)
    chat.page.keyboard.press("Alt+r")
    chat.settle()
    assert chat.texts()[-1] == "You said: Early"


@on_page(
    fake={
        "steps": [
            {"stage": "plan", "done": 1, "total": 1},
            {"stage": "weights", "done": 0, "total": 96.7e6, "cached": 0},
            {"stage": "shaders", "done": 2, "total": 9},
            {"stage": "weights", "done": 30e6, "total": 96.7e6, "cached": 10e6},
            {"stage": "shaders", "done": 3, "total": 9},
        ],
        "hold": True,
    }
)
def test_loading_tells_how_far_it_is(chat: ChatPage) -> None:
    chat.open(phase=None)
    chat.eventually("() => document.querySelector('.amount')?.textContent.startsWith('30.0 MB of 96.7 MB')")
    assert chat.page.get_attribute(".progress", "aria-valuenow") == "31"
    assert chat.page.inner_text(".stage") == "Loading weights…"
    assert "135M parameters · Q4_1 · 96.7 MB · Apache-2.0" in chat.page.inner_text("#welcome")


@on_page(fake={"stored": {"another": 9e9}})
def test_much_is_loaded_only_after_asking(chat: ChatPage) -> None:
    chat.server.model["nbytes"] = 1_200_000_000
    # As from another machine, on which much would be fetched.
    chat.page.route("**/static/page/compute.js", lambda route: route.fulfill(
        response=(answer := route.fetch()), body=answer.text().replace("location.hostname", '"box.lan"')
    ))  # fmt: skip
    chat.open(phase=None)
    chat.page.click("text=Load 1.20 GB")
    chat.page.wait_for_selector('#where[data-phase="ready"]')


@on_page(fake={"reply": ENDLESS, "pause": 4})
@pytest.mark.parametrize("by", [400, 20])
def test_scrolling_follows_unless_one_has_scrolled_up(chat: ChatPage, by: int) -> None:
    """Be it by a little: what is written meanwhile does not take it back."""
    chat.open()
    at_end = "() => checks.atEnd()"
    chat.say("Go on", wait=False)
    chat.eventually("() => document.querySelector('#scroller').scrollTop > 100")
    assert chat.page.evaluate(at_end)
    chat.page.mouse.move(600, 300)
    chat.page.mouse.wheel(0, -by)
    chat.page.wait_for_selector("#to-bottom:not([hidden])")
    height = chat.page.evaluate("() => document.querySelector('#scroller').scrollHeight")
    chat.eventually("(h) => document.querySelector('#scroller').scrollHeight > h", height)
    assert not chat.page.evaluate(at_end)
    chat.page.click("#to-bottom")
    chat.page.keyboard.press("Escape")
    chat.settle()
    assert chat.page.evaluate(at_end)


@on_page(fake={"reply": ALL_OF_IT, "promptTokens": 590, "ctxSize": 700})
def test_markdown_figures_and_a_context_that_is_nearly_full(chat: ChatPage) -> None:
    chat.open()
    chat.say("All of it")
    assert chat.page.locator(".said :is(h2, strong, em, code, a, ul, table, blockquote)").count() == 9
    assert chat.page.get_attribute(".said a", "rel") == "noopener noreferrer"
    breaks = "(all) => all.map((each) => getComputedStyle(each).textWrapMode)"
    assert set(chat.page.eval_on_selector_all(".said td", breaks)) == {"nowrap"}
    assert "40.0 tok/s" in chat.page.inner_text(".assistant .meta")
    assert chat.page.inner_text("#context-text").startswith("Context 6")
    assert "% full" in chat.page.inner_text("#context-text")
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.page.click(".copy-code")
    chat.page.wait_for_selector("text=Copied")
    assert chat.page.evaluate("() => navigator.clipboard.readText()") == 'print("x")'
    chat.page.keyboard.press("Alt+c")
    chat.eventually("(text) => navigator.clipboard.readText().then((t) => t === text)", ALL_OF_IT)


@on_page()
def test_markdown_that_grows_ends_as_markdown_that_came_at_once(chat: ChatPage) -> None:
    chat.open()
    texts = [ALL_OF_IT, LINE * 8, "a\r\nb\tc\n\n\u00a0d\n\u2028e", "```\ncode\n\n\nmore"]
    assert chat.page.evaluate("(texts) => checks.growing(texts)", texts) == []


@on_page()
def test_only_the_last_block_is_made_again(chat: ChatPage) -> None:
    chat.open()
    kept = chat.page.evaluate("() => checks.kept()")
    assert kept == [True, True, "onejsCopyabcthe endof it"]
    assert chat.page.evaluate("() => checks.grownInPlace()") == {
        "list": [True, True, 5],
        "ordered": [True, True, 3],
        "table": [True, True, 3],
    }


# Chats


@on_page()
def test_chats_are_found_renamed_deleted_and_brought_back(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    for text in ("Cats and boxes", "Rivers of Asia"):
        chat.page.keyboard.press("Alt+n")
        chat.say(text)
    titles = lambda: page.eval_on_selector_all(".chats .go", "(all) => all.map((each) => each.textContent)")  # noqa: E731
    assert titles() == ["Rivers of Asia", "Cats and boxes"]
    page.keyboard.press("Control+k")
    page.keyboard.type("you said boxes")
    chat.eventually("() => document.querySelectorAll('.chats .go').length === 1")
    page.keyboard.press("Enter")
    chat.eventually("() => document.querySelector('#title').textContent === 'Cats and boxes'")
    page.fill("#search", "")
    chat.eventually("() => document.querySelectorAll('.chats .go').length === 2")
    page.click(".chats .open .more")
    page.keyboard.press("Enter")  # the first of the menu: rename
    page.keyboard.type("Felines")
    page.keyboard.press("Enter")
    chat.eventually("() => document.querySelector('#title').textContent === 'Felines'")
    page.click(".chats .open .more")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Deleted “Felines”")
    assert titles() == ["Rivers of Asia"]
    page.click("text=Undo")
    chat.eventually("() => document.querySelector('#title').textContent === 'Felines'")
    assert chat.texts() == ["Cats and boxes", "You said: Cats and boxes"]


@on_page(fake={"reply": ["said", "said again"]})
def test_what_is_exported_is_read_back_here_and_by_the_terminal(chat: ChatPage) -> None:
    chat.open()
    chat.say("Question")
    chat.page.keyboard.press("Alt+r")
    chat.settle()
    texts = {}
    for kind in ("Markdown", "JSON"):
        chat.page.click(".chats .open .more")
        with chat.page.expect_download() as download:
            chat.page.click(f"text=Export as {kind}")
        texts[kind] = download.value.path().read_text(encoding="utf-8")
    assert "## User\n" in texts["Markdown"] and texts["Markdown"].endswith("said again\n")
    read = from_json(texts["JSON"])
    assert [m.content for m in read.messages] == ["Question", "said", "said again"]
    assert read.session.leaf_id == 3
    files = [
        {"name": "chat.json", "mimeType": "application/json", "buffer": texts["JSON"].encode()},
        {"name": "wrong.json", "mimeType": "application/json", "buffer": b'{"format": 1}'},
    ]
    chat.page.set_input_files("#import-file", files)  # type: ignore[arg-type]
    chat.page.wait_for_selector(
        "text=wrong.json was not imported: the file holds no conversation of wgllm's."
    )
    chat.eventually("() => document.querySelectorAll('.chats .go').length === 2")
    assert chat.texts() == ["Question", "said again"]


# The browser's locks answer late.
LATE_LOCKS = """
const { request } = LockManager.prototype;
LockManager.prototype.request = async function (...asked) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    return request.apply(this, asked);
};
"""


@on_page(fake={"reply": "one two three four five six seven", "holdAfter": 3})
def test_what_a_killed_tab_had_written_is_there_and_interrupted(chat: ChatPage) -> None:
    chat.open()
    chat.say("Go", wait=False)
    chat.eventually("() => document.querySelector('.assistant .said')?.innerText === 'one two thre'")
    # The model writes on for a second, so that what there is has been saved; then the tab is gone.
    chat.page.evaluate("() => { const r = wgllmPage.app.chats.chat; return wgllmPage.store.save(r); }")
    other = chat.page.context.new_page()
    # Which of the two tells, and be it later than the chats are read: the lock, not the time that has passed.
    other.add_init_script(PATIENT)
    other.add_init_script(LATE_LOCKS)
    other.goto(chat.page.url)
    other.wait_for_selector(".assistant .mark")
    assert other.inner_text(".assistant .mark") == "Being written in another tab…"
    chat.page.goto("about:blank")
    other.wait_for_function("() => document.querySelector('.mark').innerText.startsWith('Interrupted')")
    assert other.inner_text(".assistant .said") == "one two thre"
    chat.page.goto(other.url)
    chat.page.wait_for_selector(".assistant")


@on_page()
def test_two_tabs_do_not_overwrite_each_other(chat: ChatPage) -> None:
    chat.open()
    chat.say("Both")
    other = chat.page.context.new_page()
    other.goto(chat.page.url)
    other.wait_for_selector(".assistant")
    other.wait_for_selector('#where[data-phase="ready"]')
    # Two that both go on from the same message, neither having heard of the other.
    chat.page.evaluate("() => { wgllmPage.store.onChange = () => {}; }")
    other.fill("#input", "from the other")
    other.press("#input", "Enter")
    other.wait_for_function("() => document.querySelectorAll('.assistant').length === 2")
    other.wait_for_function("() => document.querySelector('#stop').hidden")
    chat.say("from here")
    stored = chat.page.evaluate(
        "() => wgllmPage.store.get(location.hash.slice(1)).then((c) => Object.values(c.messages).map((m) => m.content))"
    )
    assert {"from here", "from the other", "You said: from here", "You said: from the other"} <= set(stored)
    assert chat.page.inner_text(".user:nth-of-type(3) .branches") == "2/2"
    # The other one hears of it.
    other.wait_for_selector(".branches")


# What can go wrong


OBSTACLES = {
    "no-webgpu": "This browser has no WebGPU",
    "insecure": "--tls",
    "no-adapter": "The browser offers no graphics card",
}


@on_page()
@pytest.mark.parametrize("kind", OBSTACLES)
def test_without_a_card_the_server_computes(chat: ChatPage, kind: str) -> None:
    chat.page.add_init_script(f"window.fake.obstacle = {{kind: {kind!r}, message: 'in its own words'}}")
    chat.server.say("Hello", " from", " the server")
    chat.open(phase=None)
    chat.page.wait_for_selector("#welcome .trouble")
    told = chat.page.inner_text("#welcome .trouble")
    assert OBSTACLES[kind] in told and "in its own words" in told
    chat.page.click("text=Compute on the server instead")
    chat.page.wait_for_selector('#where[data-phase="ready"]')
    assert "CPU (NumPy)" in chat.page.inner_text("#welcome")
    chat.say("Hi")
    assert chat.texts() == ["Hi", "Hello from the server"]
    assert "by the server" in chat.page.inner_text(".assistant .meta")
    assert chat.server.asked[0]["progress"] is True
    chat.say("More")
    assert chat.server.asked[1]["messages"][1] == {
        "role": "assistant",
        "content": "Hello from the server",
        "token_ids": [0, 1, 2],
    }
    chat.page.reload()  # the choice is kept
    chat.page.wait_for_selector('#where[data-phase="ready"]')


@on_page(
    fake={
        "reply": "some words and more",
        "generateError": {"after": 2, "kind": "lost", "message": "device destroyed"},
    }
)
@pytest.mark.parametrize("go_on", ["card", "server"])
def test_a_card_that_is_lost_in_a_reply(chat: ChatPage, go_on: str) -> None:
    chat.server.say("from the server")
    chat.open()
    chat.say("Go")
    assert chat.texts()[1] == "some word"
    assert "The graphics card was lost" in chat.page.inner_text(".fault")
    assert chat.page.get_attribute("#where", "data-phase") == "failed"
    chat.set(generateError=None)
    chat.page.click(
        ".fault >> text=" + ("Try the card again" if go_on == "card" else "Compute on the server instead")
    )
    chat.eventually("() => wgllmPage.app.chats.busy || document.querySelector('.branches')")
    chat.settle()
    assert chat.texts()[1] == ("some words and more" if go_on == "card" else "from the server")
    assert chat.page.inner_text(".assistant .branches") == "2/2"  # what had been written is the other version


@on_page()
def test_a_card_that_is_lost_while_nothing_runs(chat: ChatPage) -> None:
    chat.open()
    chat.say("Hi")
    chat.page.evaluate("() => checks.lose('driver restarted')")
    chat.page.wait_for_selector("#dock-panel .trouble")
    chat.page.click("#dock-panel >> text=Try the card again")
    chat.page.wait_for_selector('#where[data-phase="ready"]')


@on_page(fake={"loadError": {"kind": "out-of-memory", "message": "no room for 271 MB"}})
def test_a_card_without_room(chat: ChatPage) -> None:
    chat.open(phase=None)
    chat.page.wait_for_selector(".trouble")
    told = chat.page.inner_text(".trouble")
    assert "not enough memory left" in told and "no room for 271 MB" in told
    chat.set(loadError=None)
    chat.page.click("text=Try the card again")
    chat.page.wait_for_selector('#where[data-phase="ready"]')


@on_page()
def test_the_key_that_a_server_wants(chat: ChatPage) -> None:
    chat.server.key = "secret"
    chat.open(phase=None)
    chat.page.wait_for_selector("#key[open]")
    chat.page.keyboard.type("wrong")
    chat.page.keyboard.press("Enter")
    chat.page.wait_for_selector("text=The server does not take this key.")
    chat.page.keyboard.type("secret")
    chat.page.keyboard.press("Enter")
    chat.page.wait_for_selector('#where[data-phase="ready"]')
    kept = "() => [localStorage.getItem('wgllm.key'), sessionStorage.getItem('wgllm.key')]"
    assert chat.page.evaluate(kept) == [None, "secret"]
    chat.page.reload()
    chat.page.wait_for_selector('#where[data-phase="ready"]')


@on_page()
def test_a_server_that_is_gone(chat: ChatPage) -> None:
    chat.server.gone = True
    chat.open(phase=None)
    chat.page.wait_for_selector("text=The server can't be reached")
    chat.server.gone = False
    chat.page.click("text=Try again")
    chat.page.wait_for_selector('#where[data-phase="ready"]')
    chat.set(generateError={"after": 0, "kind": "network", "message": "the server does not answer"})
    chat.say("Hi")
    assert "without it no reply can begin" in chat.page.inner_text(".fault")
    chat.set(generateError=None)
    chat.page.click(".fault button")
    chat.settle()
    assert chat.texts()[1] == "You said: Hi"


@on_page()
def test_a_server_that_is_busy_or_fails(chat: ChatPage) -> None:
    chat.page.add_init_script("localStorage.setItem('wgllm.where', 'server')")
    chat.server.error = (503, {"error": {"message": "8 wait already", "type": "server_error"}})
    chat.open()
    chat.say("Hi")
    assert "The server is busy" in chat.page.inner_text(".fault")
    chat.server.error = None
    chat.server.chunks = [{"error": {"message": "the engine died", "type": "server_error"}}]
    chat.page.click(".fault button")
    chat.settle()
    assert "the engine died" in chat.page.inner_text(".fault")


# Settings


@on_page()
def test_settings_hold_at_once_and_after_a_reload(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    page.keyboard.press("Alt+,")
    assert page.evaluate("() => document.activeElement.value") == "gpu"  # the first choice, not the cross
    assert page.input_value("#set-temperature") == "0.7"
    page.fill("#set-temperature", "0")
    page.fill("#set-seed", "12")
    page.fill("#set-topK", "129")
    assert "from 1 to 128" in page.inner_text("#settings-wrong")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    chat.say("Hi")
    asked = page.evaluate("() => asked[0]")
    assert asked["sampling"] == {
        "temperature": 0,
        "topK": 40,
        "topP": 0.95,
        "minP": 0.05,
        "seed": 12,
        "maxTokens": None,
    }
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    page.wait_for_selector('#where[data-phase="ready"]')
    page.keyboard.press("Alt+,")
    assert [page.input_value(i) for i in ("#set-seed", "#system")] == ["12", "Be brief."]
    # What was chosen for the server is not silently another on the card.
    page.evaluate("() => localStorage.setItem('wgllm.sampling', '{\"topK\": 500}')")
    page.reload()
    page.wait_for_selector('#where[data-phase="ready"]')
    page.keyboard.press("Alt+,")
    assert [page.input_value("#set-topK"), page.get_attribute("#set-topK", "aria-invalid")] == ["500", "true"]
    assert "from 1 to 128. Until then it is 128." in page.inner_text("#settings-wrong")
    page.click("#settings >> text=The server")
    assert page.inner_text("#settings-wrong") == ""
    page.click("text=Reset to the model's own")
    assert page.input_value("#set-temperature") == "0.7"
    page.click("#settings >> text=Dark")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 26)"


@on_page()
def test_about_the_card(chat: ChatPage) -> None:
    chat.open()
    chat.page.click("#where")
    chat.page.wait_for_selector("text=271 MB of weights are kept")
    told = chat.page.inner_text("#card")
    for part in (
        "ada-lovelace",
        "412 MB",
        "shader-f16, subgroups",
        "maxBufferSize",
        "268,435,456",
        "Apache-2.0",
    ):
        assert part in told
    ends = "(all) => all.map((each) => getComputedStyle(each).textAlign)"
    assert set(chat.page.eval_on_selector_all("#card .numbers dd", ends)) == {"end"}
    chat.page.click('[aria-label="Delete the weights of smollm2"]')
    chat.page.wait_for_selector("text=Deleted.")
    assert chat.page.evaluate("() => fake.stored") == {}


# Looks


def filled(chat: ChatPage) -> None:
    """A page on which much is to be seen."""
    chat.open()
    chat.set(reply=ALL_OF_IT)
    chat.say("All of it")
    chat.set(generateError={"after": 1, "kind": "lost", "message": "device destroyed"})
    chat.say("And an error")
    chat.page.evaluate("() => checks.tell('Something to know')")
    chat.page.wait_for_selector(".toasts p")


@on_page()
def test_contrast_and_names(chat: ChatPage) -> None:
    page = chat.page
    filled(chat)
    for opened in (None, "#open-settings", "#open-card", "#open-help"):
        if opened:
            page.click(opened)
        if opened == "#open-card":
            page.wait_for_selector("#card >> text=of weights are kept")  # the last that comes
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            seen, poor = page.evaluate("() => checks.contrast()")
            assert seen > 40 and poor == []
        assert page.evaluate("() => checks.names()") == []
        page.keyboard.press("Escape")


UNBREAKABLE = "\n\n".join(
    (
        "`" + "x" * 200 + "`",
        "```\n" + "y" * 200 + "\n```",
        "|" + "wide header |" * 9 + "\n|" + "---|" * 9,
        "z" * 200,
        "- - - - " + "q" * 99,
    )
)


@on_page(width=320, height=640)
def test_on_a_phone_nothing_is_wider_than_the_screen(chat: ChatPage) -> None:
    page = chat.page
    chat.server.model["name"] = "A-model-whose-name-has-no-space-where-a-line-could-end-at-all"
    filled(chat)
    chat.set(generateError=None, reply=UNBREAKABLE)
    chat.say("w" * 200)
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 640})
        chat.eventually("(width) => innerWidth === width", width)
        assert max(page.evaluate("() => checks.wide()")) <= 0
        assert page.evaluate("() => checks.small()") == []
    page.click("#open-side")
    assert page.evaluate("() => checks.small()") == []
    assert page.evaluate("() => document.activeElement.id") == "close-side"
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.id") == "open-side"
    for open_it in ("#open-settings", "#open-card", "#open-help"):
        page.click("#open-side")
        page.click(open_it)
        assert max(page.evaluate("() => checks.wide()")) <= 0
        page.keyboard.press("Escape")
    page.keyboard.press("Alt+n")
    assert max(page.evaluate("() => checks.wide()")) <= 0
    assert "·" not in page.inner_text("#model-facts")  # at the end of a line it would stand between nothing


@on_page(fake={"reply": "one two three\n\nfour five six\n\n```js\nseven\neight\n```\n\nnine", "pause": 15})
def test_nothing_moves_while_a_reply_is_written(chat: ChatPage) -> None:
    chat.open()
    chat.set(holdPrefill=True)
    chat.page.evaluate("() => { window.moved = checks.watchShifts(); }")
    chat.page.evaluate("() => void wgllmPage.app.chats.send('Go')")
    chat.page.wait_for_selector(".waiting >> text=Reading the conversation")
    chat.page.evaluate("() => moved()")
    chat.set(holdPrefill=False)
    chat.settle()
    assert chat.page.evaluate("() => moved()") == []
    chat.page.evaluate("() => { document.querySelector('#log').style.paddingTop = '99px'; }")
    assert chat.page.evaluate("() => moved()") != []


@on_page()
def test_the_end_of_a_reply_is_announced_and_no_token_is(chat: ChatPage) -> None:
    chat.open()
    chat.page.evaluate("() => checks.listen()")
    chat.say("one two three")
    assert chat.page.evaluate("() => heard") == ["You said: one two three"]
    assert chat.page.get_attribute("#log", "aria-live") == "off"
    # Before it, that the model is loaded; and what comes and goes does so in places that are listened to.
    chat.page.reload()
    chat.eventually("() => document.querySelector('#announcer').textContent === 'The model is ready.'")
    assert chat.page.get_attribute("#toasts", "role") == "status"
    assert chat.page.get_attribute("#notices", "aria-live") == "polite"


@on_page()
def test_keys_are_listed_and_do_nothing_in_dialogs(chat: ChatPage) -> None:
    chat.open()
    chat.say("Hi")
    chat.page.focus("#new-chat")
    chat.page.keyboard.press("?")
    chat.page.wait_for_selector("#help[open]")
    chat.page.keyboard.press("Alt+n")
    assert len(chat.texts()) == 2
    chat.page.keyboard.press("Escape")
    chat.page.keyboard.press("/")
    chat.page.keyboard.type("?/")
    assert chat.page.input_value("#input") == "?/"


@on_page()
def test_the_page_remembers_what_json_is(chat: ChatPage) -> None:
    """Its stored data are the visitor's: broken ones are as if there were none."""
    chat.page.add_init_script(
        "localStorage.setItem('wgllm.sampling', '{'); localStorage.setItem('wgllm.theme', 'x\"><b>')"
    )
    chat.open()
    chat.say(json.dumps({"a": [1]}))
    assert chat.texts()[0] == '{"a": [1]}'
