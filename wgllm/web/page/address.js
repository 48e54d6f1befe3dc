/** What the browser shows of the open chat: its title, and an address that names it. Back leads to the one before. */

import { byId } from "./dom.js";

/** What a chat's name looks like, see `newId`; any other fragment names none. */
const NAME = /^[0-9a-f]{24}$/;

/** The chat that the address names; empty: none. */
export function named() {
    const id = location.hash.slice(1);
    return NAME.test(id) ? id : "";
}

/**
 * Names a chat in the address.
 * @param {string} id Empty: none.
 * @param {{step?: boolean}} [options] `step`: one that Back undoes.
 */
export function name(id, { step = false } = {}) {
    if (id === named()) {
        return;
    }
    const address = id === "" ? location.pathname + location.search : `#${id}`;
    if (step) {
        history.pushState(null, "", address);
    } else {
        history.replaceState(null, "", address);
    }
}

/** @param {(id: string) => void} onName Called where the visitor goes back or forth, or types another address. */
export function listen(onName) {
    window.addEventListener("hashchange", () => {
        if (named() !== "" || location.hash === "") {
            onName(named());
        }
    });
}

/** @param {string} text */
export function title(text) {
    byId("title").textContent = text;
    document.title = `${text} · wgllm`;
}
