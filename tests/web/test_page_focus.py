"""Keys always go somewhere: what had the focus may change or go away. The model is a fake."""

from __future__ import annotations

from tests.web.chat_page import ChatPage, on_page

FOCUSED = """() => {
    const { activeElement: e } = document;
    return e.ariaLabel || e.id || e.textContent;
}"""


@on_page(fake={"reply": ["first", "second", "third"]})
def test_messages_that_are_made_again(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    chat.say("one?")
    page.focus('[aria-label="Another reply"]')
    chat.set(holdPrefill=True)
    page.keyboard.press("Enter")
    page.wait_for_selector(".waiting")
    assert page.evaluate(FOCUSED) == "Reply"
    page.keyboard.press("Escape")
    chat.settle()
    chat.set(holdPrefill=False)
    assert page.evaluate(FOCUSED) == "Reply"
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == "Previous version"
    page.keyboard.press("Enter")
    assert chat.texts()[1] == "first"
    assert page.evaluate(FOCUSED) == "Next version"  # there is none before
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "Previous version"
    page.focus('[aria-label="Edit and ask again"]')
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert page.evaluate(FOCUSED) == "Edit and ask again"
    page.keyboard.press("Enter")
    page.keyboard.insert_text(" again?")
    page.keyboard.press("Enter")
    chat.settle()
    assert chat.texts() == ["one? again?", "third"]
    assert page.evaluate(FOCUSED) == "Message"


@on_page()
def test_chats_that_are_deleted(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    for text in ("One", "Two", "Three"):
        page.keyboard.press("Alt+n")
        chat.say(text)
    page.focus(".chats li:nth-child(2) .more")
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Deleted “Two”")
    assert page.evaluate(FOCUSED) == "One"
    for _ in range(6):  # what brings it back is not far
        page.keyboard.press("Shift+Tab")
        if page.evaluate(FOCUSED) == "Undo":
            break
    page.keyboard.press("Enter")
    chat.eventually("() => document.querySelectorAll('.chats .go').length === 3")


@on_page(fake={"hold": True})
def test_panels_that_change(chat: ChatPage) -> None:
    chat.server.gone = True
    chat.open(phase=None)
    page = chat.page
    again = "#welcome .trouble >> text=Try again"
    page.wait_for_selector(again)
    page.evaluate("() => { document.querySelector('.trouble').dataset.old = 'yes'; }")
    page.focus(again)
    page.keyboard.press("Enter")
    page.wait_for_selector(".trouble:not([data-old])")
    assert page.evaluate(FOCUSED) == "Try again"
    chat.server.gone = False
    page.keyboard.press("Enter")
    page.wait_for_selector("#welcome .progress")
    assert page.evaluate(FOCUSED) == "Message"
    page.focus("text=Cancel")
    page.keyboard.press("Enter")
    page.wait_for_selector('#where[data-phase="asking"]')
    assert page.evaluate(FOCUSED) == "Message"


@on_page(width=390, height=800, touch=True, fake={"reply": "one two three", "holdAfter": 1})
def test_on_a_phone(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    page.click("#open-side")
    page.click("#open-help")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    chat.eventually("() => document.activeElement.id === 'open-side'")
    page.fill("#input", "Go")
    page.tap("#send")
    chat.eventually("() => document.querySelector('.assistant .said')?.innerText === 'one'")
    page.tap("#stop")
    chat.settle()
    # A focus would bring up the keyboard.
    assert page.evaluate("() => document.activeElement.id") != "input"
