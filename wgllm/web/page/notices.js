/** What the page tells beside the conversation: short messages that go away, notices that stay, words for a screen reader. */

import { byId, iconButton, make, textButton } from "./dom.js";

/** How long a short message stays. */
const SHORT_MS = 6000;

/** @typedef {{label: string, act: () => void}} Action */

/**
 * A message that goes away by itself.
 * @param {string} text
 * @param {Action} [action]
 */
export function toast(text, action) {
    const box = make("div", { role: "status" }, make("p", { dir: "auto" }, text));
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
    let timer = setTimeout(remove, SHORT_MS);
    // Who is about to press its button has the time to.
    box.addEventListener("pointerenter", () => clearTimeout(timer));
    box.addEventListener("focusin", () => clearTimeout(timer));
    box.addEventListener("pointerleave", () => (timer = setTimeout(remove, SHORT_MS)));
}

/**
 * A message that stays until it is closed, or another of this name takes its place.
 * @param {string} name
 * @param {string} text Empty: none.
 * @param {Action} [action]
 */
export function notice(name, text, action) {
    const notices = byId("notices");
    notices.querySelector(`[data-name="${name}"]`)?.remove();
    if (text === "") {
        return;
    }
    const box = make("div", { "data-name": name, role: "status" }, make("p", { dir: "auto" }, text));
    if (action) {
        box.append(textButton(action.label, "quiet", action.act));
    }
    const close = iconButton("close", "Close this notice", () => box.remove());
    close.classList.add("icon-button");
    box.append(close);
    notices.append(box);
}

/** Says something to those who hear the page. @param {string} text */
export function announce(text) {
    byId("announcer").textContent = text;
}
