"""What a visitor has written is kept, and stands where it was written. The model is a fake."""

from __future__ import annotations

from tests.web.chat_page import ChatPage, on_page

OPEN = "() => document.querySelector('#title').textContent"


@on_page(fake={"reply": "words that go on and on", "holdAfter": 2})
def test_what_was_begun_is_not_lost(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    page.keyboard.insert_text("begun")
    page.focus("#skip")
    page.keyboard.press("Enter")  # leads to the field, and no further
    assert page.evaluate("() => document.activeElement.id") == "input"
    page.keyboard.press("Alt+n")
    assert [page.input_value("#input"), page.evaluate("() => location.hash")] == ["begun", ""]
    page.reload()
    page.wait_for_selector('#where[data-phase="ready"]')
    assert page.input_value("#input") == "begun"
    page.fill("#input", "")
    chat.say("First", wait=False)
    chat.eventually("() => document.querySelector('.assistant .said')?.innerText === 'words'")
    # An edit that can't be sent yet.
    page.keyboard.press("Alt+e")
    page.fill(".edit textarea", "First, edited")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Stop the reply that is being written first.")
    assert page.input_value(".edit textarea") == "First, edited"
    # Neither it nor what was begun below is lost in another chat.
    page.fill("#input", "for the first")
    page.keyboard.press("Alt+n")
    assert page.input_value("#input") == ""
    page.fill("#input", "for a new one")
    page.click(".chats .go")
    assert [page.input_value(i) for i in ("#input", ".edit textarea")] == ["for the first", "First, edited"]
    page.click("#stop")
    chat.settle()
    chat.set(holdAfter=None)
    page.press(".edit textarea", "Enter")
    chat.settle()
    assert chat.texts() == ["First, edited", "words that go on and on"]
    assert page.locator(".edit").count() == 0
    assert page.evaluate("() => document.activeElement.id") == "input"
    page.locator(".user").hover()
    page.click('.user [aria-label="Previous version"]')
    assert page.locator(".edit").count() == 0  # what was sent is no draft
    page.keyboard.press("Alt+n")
    assert page.input_value("#input") == "for a new one"


@on_page(fake={"generateError": {"after": 1, "kind": "lost", "message": "device destroyed"}})
def test_a_remedy_answers_in_no_other_chat(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    chat.say("Other")
    page.keyboard.press("Alt+n")
    page.wait_for_selector("#welcome")
    chat.say("This")
    chat.set(generateError=None, hold=True)
    page.click(".fault >> text=Try the card again")
    page.wait_for_selector('#where[data-phase="loading"]')
    page.click(".chats li:nth-child(2) .go")
    chat.eventually("() => document.querySelector('.user .body')?.innerText === 'Other'")
    before = chat.texts()
    chat.set(hold=False)
    page.wait_for_selector('#where[data-phase="ready"]')
    chat.settle()
    assert chat.texts() == before
    asked = page.evaluate("() => asked.map(({ messages }) => messages.at(-1).content)")
    assert asked == ["Other", "This"]


@on_page(fake={"reply": "one two three", "holdAfter": None})
def test_back_leads_to_the_chat_before(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    chat.say("First")
    page.keyboard.press("Alt+n")
    chat.say("Second")
    page.go_back()
    chat.eventually("() => document.querySelector('#title').textContent === 'First'")
    assert chat.texts()[0] == "First"
    page.go_forward()
    chat.eventually("() => document.querySelector('#title').textContent === 'Second'")
    # A fragment that is no chat's changes nothing; a chat that is gone is told.
    page.evaluate("() => { location.hash = '#input'; }")
    page.evaluate("() => { location.hash = '#0123456789abcdef01234567'; }")
    page.wait_for_selector("text=The chat of this address is not kept in this browser.")
    assert page.evaluate(OPEN) == "New chat"
    assert page.evaluate("() => location.hash") == ""
    # Whoever leaves while a reply is written is asked.
    kinds: list[str] = []
    page.on("dialog", lambda dialog: (kinds.append(dialog.type), dialog.accept()))
    chat.set(holdAfter=1)
    chat.say("Third", wait=False)
    chat.eventually("() => document.querySelector('.assistant .said')?.innerText === 'one'")
    page.reload()
    page.wait_for_selector('#where[data-phase="ready"]')
    page.reload()
    assert kinds == ["beforeunload"]


@on_page()
def test_what_was_asked_for_last_is_opened(chat: ChatPage) -> None:
    """Though what was asked for before is read later."""
    chat.open()
    page = chat.page
    for text in ("One", "Two", "Three"):
        page.keyboard.press("Alt+n")
        chat.say(text)
    page.evaluate(
        """() => {
            const { store } = wgllmPage;
            const get = store.get.bind(store);
            window.slow = { id: wgllmPage.app.chats.chat.id, reads: [] };
            store.get = async (id) => {
                if (id === slow.id) {
                    await new Promise((go) => slow.reads.push(go));
                }
                return get(id);
            };
            slow.read = async () => {
                slow.reads.splice(0).forEach((go) => go());
                await store.list();
                await checks.drawn();
            };
        }"""
    )
    page.click("text=Two")
    chat.eventually("() => document.querySelector('#title').textContent === 'Two'")
    page.click(".chats .go >> text=Three")
    page.click(".chats .go >> text=One")
    chat.eventually("() => document.querySelector('#title').textContent === 'One'")
    page.evaluate("() => slow.read()")
    assert chat.texts()[0] == "One"
    page.click(".chats .go >> text=Three")
    page.keyboard.press("Alt+n")
    page.evaluate("() => slow.read()")
    assert page.evaluate(OPEN) == "New chat"
    page.click(".chats .go >> text=Three")
    page.evaluate("() => slow.read()")
    chat.eventually("() => document.querySelector('#title').textContent === 'Three'")


@on_page(fake={"reply": "one two three four five six", "pause": 5})
def test_a_storage_that_refuses_is_told_once(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    page.evaluate(
        """() => {
            window.told = 0;
            const added = (all) => all.forEach(({ addedNodes }) => { told += addedNodes.length; });
            new MutationObserver(added).observe(document.querySelector("#notices"), { childList: true });
            const { store } = wgllmPage;
            window.refusal = new DOMException("full", "QuotaExceededError");
            const save = store.save.bind(store);
            store.save = (chat) => (refusal ? Promise.reject(refusal) : save(chat));
        }"""
    )
    chat.say("Hi")
    page.keyboard.press("Alt+r")
    chat.settle()
    assert page.evaluate("() => told") == 1
    assert "The browser has no room left" in page.inner_text("#notices")
    page.click('[aria-label="Close this notice"]')
    page.keyboard.press("Alt+r")
    chat.settle()
    assert page.evaluate("() => told") == 1
    page.evaluate("() => { refusal = new DOMException('the database is closing', 'InvalidStateError'); }")
    page.keyboard.press("Alt+r")
    chat.settle()
    assert "can't write to its storage (the database is closing)" in page.inner_text("#notices")
    page.evaluate("() => { refusal = null; }")
    page.click("#notices >> text=Try again")
    chat.eventually("() => document.querySelector('#notices').childElementCount === 0")
    chat.eventually("() => document.querySelectorAll('.chats .go').length === 1")


@on_page(fake={"reply": "words"})
def test_the_list_of_chats_stays_as_it_is_while_a_reply_is_written(chat: ChatPage) -> None:
    chat.open()
    page = chat.page
    chat.say("Older")
    page.keyboard.press("Alt+n")
    chat.say("Newer")
    page.focus(".chats li:nth-child(2) .more")
    page.evaluate(
        """() => {
            window.changes = [];
            const options = { childList: true, subtree: true, characterData: true };
            const seen = (all) => changes.push(...all.map(({ target }) => target.nodeName));
            new MutationObserver(seen).observe(document.querySelector("#chats"), options);
        }"""
    )
    # What a reply does about each second, and at its end.
    page.evaluate(
        """async () => {
            const { app: { chats }, store } = wgllmPage;
            const list = store.list.bind(store);
            store.list = () => { changes.push("list"); return list(); };
            await chats.setSystem("a"); await chats.setSystem("b"); await chats.setSystem("");
        }"""
    )
    assert page.evaluate("() => changes") == []
    # One that moves up takes nothing from the others.
    page.evaluate("() => { window.first = document.querySelector('.chats .go'); }")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.ariaLabel") == "Options of “Older”"
    page.click("text=Older")
    chat.eventually("() => document.querySelector('#title').textContent === 'Older'")
    chat.say("More")
    titles = "() => Array.from(document.querySelectorAll('.chats .go'), (each) => each.textContent)"
    assert page.evaluate(titles) == ["Older", "Newer"]
    assert page.evaluate("() => document.querySelectorAll('.chats .go')[1] === first")
    # Whoever looks for one chat and begins another finds it in the list.
    page.fill("#search", "newer")
    chat.eventually("() => document.querySelectorAll('.chats .go').length === 1")
    page.keyboard.press("Alt+n")
    chat.say("Third")
    chat.eventually("() => document.querySelectorAll('.chats .go').length === 3")
    assert page.input_value("#search") == ""
    # What is looked for is looked for again when chats change.
    page.fill("#search", "renamed")
    page.wait_for_selector("text=No chat has these words.")
    page.evaluate("() => wgllmPage.app.chats.rename(wgllmPage.app.chats.chat.id, 'Renamed')")
    chat.eventually("() => document.querySelector('.chats .go')?.textContent === 'Renamed'")
