"""What computes replies, as a visitor meets it: cancelled loading, keys and models that change, what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.web.chat_page import ChatPage, on_page

if TYPE_CHECKING:
    from playwright.sync_api import Route

READY = '#where[data-phase="ready"]'


def loads(chat: ChatPage) -> int:
    """How many models have been made."""
    made: int = chat.page.evaluate("() => fakeModel.number")
    return made


# The server and its model


@on_page(fake={"reply": "kept words and many more", "holdAfter": 2})
def test_a_new_key_stops_no_reply_and_loads_nothing(chat: ChatPage) -> None:
    chat.open()
    chat.say("Go", wait=False)
    chat.eventually("() => document.querySelector('.assistant .said')?.innerText === 'kept word'")
    chat.server.key = "secret"
    before = loads(chat)
    chat.page.keyboard.press("Alt+,")
    chat.page.click("#settings >> text=key")
    chat.page.fill("#key-value", "secret")
    with chat.page.expect_response("**/api/model") as answer:
        chat.page.keyboard.press("Enter")
    assert answer.value.status == 200
    # Answers come in turn: after another the first has brought about all that it does.
    chat.page.evaluate("() => wgllmPage.app.connect()")
    assert chat.page.evaluate("() => wgllmPage.app.chats.busy")
    assert chat.texts()[1] == "kept word" and chat.page.get_attribute("#where", "data-phase") == "ready"
    assert (loads(chat), chat.page.evaluate("() => fakeModel.api.settings.key")) == (before, "secret")


@on_page()
def test_another_model_of_the_server_is_told_and_loaded(chat: ChatPage) -> None:
    chat.open()
    chat.say("Hi")
    chat.server.model |= {"id": "qwen2", "name": "Qwen2 0.5B"}
    chat.set(generateError={"after": 0, "kind": "other-model", "message": "the server has another model now"})
    chat.say("And now?")
    assert "another model now" in chat.page.inner_text(".fault")
    chat.page.wait_for_selector("#notices >> text=The server has another model now: Qwen2 0.5B.")
    chat.page.wait_for_selector(READY)
    chat.set(generateError=None)
    chat.page.click(".fault button")
    chat.settle()
    assert chat.texts()[-1] == "You said: And now?"
    assert chat.page.evaluate(
        "() => { const { chat } = wgllmPage.app.chats; return chat.messages[chat.leaf].model; }"
    ) == "qwen2"  # fmt: skip


@on_page()
def test_a_server_that_computes_another_model(chat: ChatPage) -> None:
    chat.page.add_init_script("localStorage.setItem('wgllm.where', 'server')")
    chat.open()
    chat.server.say("Bonjour")
    for chunk in chat.server.chunks:
        chunk["model"] = "qwen2"
    chat.server.model |= {"id": "qwen2", "name": "Qwen2 0.5B"}
    chat.say("Hi")
    assert "Bonjour" not in chat.texts()[-1]
    chat.page.wait_for_selector("#notices >> text=The server has another model now: Qwen2 0.5B.")
    chat.page.wait_for_selector(READY)
    chat.page.click(".fault button")
    chat.settle()
    assert chat.texts()[-1] == "Bonjour"


@on_page()
def test_what_the_server_computes_with_is_shown_once_it_is_known(chat: ChatPage) -> None:
    chat.page.add_init_script("localStorage.setItem('wgllm.where', 'server')")
    chat.server.engine = {"state": "idle", "where": None}
    chat.server.say("Hello")
    chat.open()
    assert chat.page.inner_text("#where-text") == "Server"
    chat.server.engine = {"state": "ready", "where": "NVIDIA L4 (Vulkan)"}
    chat.say("Hi")
    chat.page.wait_for_selector("#where-text:text-is('Server · NVIDIA L4 (Vulkan)')")


# Loading that does not go on


@on_page(
    fake={"reply": "some words", "generateError": {"after": 1, "kind": "lost", "message": "device destroyed"}}
)
def test_a_load_that_a_remedy_began_is_cancelled_for_good(chat: ChatPage) -> None:
    chat.open()
    chat.say("Go")
    chat.set(hold=True)
    chat.page.click(".fault >> text=Try the card again")
    chat.page.click("#dock-panel >> text=Cancel")
    chat.page.wait_for_selector("#dock-panel >> text=Load 96.7 MB")
    before = loads(chat)
    chat.settle()
    assert chat.page.get_attribute("#where", "data-phase") == "asking"
    assert not chat.page.evaluate("() => wgllmPage.app.chats.busy")
    assert loads(chat) == before
    assert chat.page.locator(".assistant").count() == 1


@on_page(fake={"obstacle": {"kind": "no-webgpu", "message": "none"}})
def test_a_server_that_does_not_answer_and_is_not_waited_for(chat: ChatPage) -> None:
    chat.open(phase=None)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    chat.page.route("**/health", hold)
    chat.page.click("text=Compute on the server instead")
    chat.page.click("text=Cancel")
    told = chat.page.inner_text("#panel")
    assert "graphics card" not in told and "The server is to compute" in told
    chat.page.unroute("**/health", hold)
    chat.page.click("text=Ask it again")
    chat.page.wait_for_selector(READY)
    assert chat.page.inner_text("#where-text") == "Server · CPU (NumPy)"
    chat.page.route("**/health", hold)
    chat.page.evaluate("() => void wgllmPage.compute.choose('server')")
    chat.page.click("text=Cancel")
    chat.set(obstacle=None)
    chat.page.click("text=Try the card again")  # and not the server under its name
    chat.page.wait_for_selector(READY)
    assert "RTX 4070" in chat.page.inner_text("#where-text")


HEADERS = {"network": "Server not reachable", "lost": "Card lost", "page": "Page failed"}


@on_page()
@pytest.mark.parametrize("kind", HEADERS)
def test_the_heading_tells_what_failed(chat: ChatPage, kind: str) -> None:
    chat.page.add_init_script(f"window.fake.loadError = {{kind: {kind!r}, message: 'so it is'}}")
    chat.open(phase=None)
    chat.page.wait_for_selector('#where[data-phase="failed"]')
    assert chat.page.inner_text("#where-text") == HEADERS[kind]


# What the browser keeps


@on_page(
    fake={"storeProblem": "the browser has no room to keep the weights: the next visit fetches them again"}
)
def test_weights_that_find_no_room_are_told(chat: ChatPage) -> None:
    said = "The browser has no room to keep the weights: the next visit fetches them again."
    chat.open()
    chat.page.wait_for_selector(f"#notices >> text={said}")
    chat.page.click("#where")
    chat.page.wait_for_selector(f"#card >> text={said}")


@on_page(fake={"stored": {"smollm2": 271e6, "<b>other</b>": 1e9}, "rest": 5e6})
@pytest.mark.parametrize("when", ["server", "failed", "gone"])
def test_stored_weights_are_deleted_whatever_computes(chat: ChatPage, when: str) -> None:
    if when == "server":
        chat.page.add_init_script("localStorage.setItem('wgllm.where', 'server')")
    elif when == "failed":
        chat.page.add_init_script("window.fake.loadError = {kind: 'shader', message: 'refused'}")
    chat.server.gone = when == "gone"
    chat.open(phase=None)
    chat.page.wait_for_selector('#where[data-phase="ready"], #where[data-phase="failed"]')
    chat.page.click("#where")
    chat.page.wait_for_selector("text=1.28 GB of weights are kept")
    chat.page.click('[aria-label="Delete the weights of <b>other</b>"]')
    chat.page.wait_for_selector("text=271 MB of weights are kept")
    assert chat.page.evaluate("() => fake.stored") == {"smollm2": 271e6}
    assert chat.page.is_hidden("text=Delete all stored weights")
    chat.set(rest=5e6)  # of a load that was cut off
    chat.page.keyboard.press("Escape")
    chat.page.click("#where")
    chat.page.click("text=Delete all stored weights")
    chat.page.wait_for_selector("text=No weights are kept. Deleted.")
    assert chat.page.evaluate("() => document.activeElement.closest('#card') !== null")
    assert chat.page.evaluate("() => fake.stored") == {}


@on_page(fake={"holdAfter": 3})
def test_the_context_of_the_card_is_chosen(chat: ChatPage) -> None:
    chat.server.model["n_ctx_train"] = 6000
    chat.open()
    page = chat.page
    page.keyboard.press("Alt+,")
    offered = "() => Array.from(document.querySelector('#set-context').options, (each) => each.textContent)"
    assert page.evaluate(offered) == ["usual", "1,024", "2,048", "4,096", "6,000"]
    assert "usually 8,192" in page.inner_text("#context-hint")
    # Nothing was changed, so nothing is loaded anew.
    page.keyboard.press("Escape")
    assert page.evaluate("() => [fakeModel.number, fakeModel.ctxSize]") == [1, None]
    chat.say("Hi", wait=False)
    chat.eventually("() => wgllmPage.app.chats.busy")
    page.keyboard.press("Alt+,")
    page.select_option("#set-context", "2048")
    page.keyboard.press("Escape")
    page.wait_for_function("() => fakeModel.number === 2")
    page.wait_for_selector(READY)
    chat.settle()
    page.keyboard.press("Alt+,")
    assert [page.input_value("#set-context"), page.evaluate("() => fakeModel.ctxSize")] == ["2048", 2048]
    # What the server takes anyway is no other, and chosen before the card it is loaded with at once.
    page.click("#settings >> text=The server")
    page.wait_for_selector('#where-text:text-is("Server · CPU (NumPy)")')
    page.select_option("#set-context", "4096")
    page.click("#settings >> text=This device")
    page.wait_for_selector(READY)
    page.keyboard.press("Escape")
    assert page.evaluate("() => [fakeModel.number, fakeModel.ctxSize]") == [3, 4096]
    page.keyboard.press("Alt+,")
    page.select_option("#set-context", "2048")
    page.keyboard.press("Escape")
    page.wait_for_function("() => fakeModel.number === 4")
    page.wait_for_selector(READY)
    # A model that was trained for less gets that, and the choice stays.
    chat.server.model["n_ctx_train"] = 1500
    page.reload()
    page.wait_for_selector(READY)
    page.keyboard.press("Alt+,")
    assert [page.input_value("#set-context"), page.evaluate("() => fakeModel.ctxSize")] == ["1500", 1500]
    page.keyboard.press("Escape")
    # Nor does whoever opens the settings while there is no server lose it.
    chat.server.gone = True
    page.reload()
    page.wait_for_selector("text=The server can't be reached")
    page.keyboard.press("Alt+,")
    assert page.input_value("#set-context") == "2048"
    page.keyboard.press("Escape")
    assert page.evaluate("() => localStorage.getItem('wgllm.context')") == "2048"
