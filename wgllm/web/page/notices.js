/** What the page tells beside the conversation: short messages that go away, notices that stay, words for a screen reader. */

import { byId, iconButton, make, textButton } from "./dom.js";

/** How long a short message stays, and one that offers to do something. */
const SHORT_MS = 6000;
const OFFER_MS = 12_000;

/** @typedef {{label: string, act: () => void}} Action */

/**
 * A message that goes away by itself.
 * @param {string} text
 * @param {Action} [action]
 */
export function toast(text, action) {
    const box = make("div", {}, make("p", { dir: "auto" }, text));
    const lasts = action ? OFFER_MS : SHORT_MS;
    const remove = () => box.remove();
    if (action) {
        box.append(
            textButton(action.label, "", () => {
                remove();
                action.act();
            }),
        );
    }
    const toasts = byId("toasts");
    while (toasts.childElementCount > 2) {
        toasts.firstElementChild.remove();
    }
    toasts.append(box);
    let timer = setTimeout(remove, lasts);
    // Who is about to press its button has the time to.
    for (const begin of ["pointerenter", "focusin"]) {
        box.addEventListener(begin, () => clearTimeout(timer));
    }
    for (const end of ["pointerleave", "focusout"]) {
        box.addEventListener(end, () => {
            clearTimeout(timer);
            timer = setTimeout(remove, lasts);
        });
    }
}

/** What was told last under each name. @type {Map<string, {text: string, action: Action | undefined, box: HTMLElement}>} */
const told = new Map();

/**
 * A message that stays until it is closed, or another of this name takes its place. The same once more changes nothing
 * but what its button does; nor does it come back after it was closed.
 * @param {string} name
 * @param {string} text Empty: none.
 * @param {Action} [action]
 */
export function notice(name, text, action) {
    const old = told.get(name);
    if (old?.text === text && old.action?.label === action?.label) {
        old.action = action;
        return;
    }
    old?.box.remove();
    told.delete(name);
    if (text === "") {
        return;
    }
    const box = make("div", { "data-name": name }, make("p", { dir: "auto" }, text));
    const entry = { text, action, box };
    told.set(name, entry);
    if (action) {
        box.append(textButton(action.label, "quiet", () => entry.action?.act()));
    }
    const close = iconButton("close", "Close this notice", () => box.remove());
    close.classList.add("icon-button");
    box.append(close);
    byId("notices").append(box);
}

/** Says something to those who hear the page. @param {string} text */
export function announce(text) {
    byId("announcer").textContent = text;
}
