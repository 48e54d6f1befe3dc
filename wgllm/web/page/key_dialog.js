/** Asks for the key that the server wants, and keeps it: until the tab closes, or in the browser. */

import { byId, openDialog } from "./dom.js";

/** @typedef {import("./settings.js").Kept} Kept */

export class KeyDialog {
    #dialog = byId("key");
    #value = byId("key-value");
    #session;
    #local;

    /**
     * @param {Kept} session Until the tab closes.
     * @param {Kept} local
     * @param {(key: string) => void} onKey
     */
    constructor(session, local, onKey) {
        this.#session = session;
        this.#local = local;
        byId("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
            event.preventDefault();
            const key = this.#value.value.trim();
            // What can stand in no header is no key.
            if (!/^[\x21-\x7e]+$/.test(key)) {
                byId("key-wrong").textContent =
                    "A key has no spaces and only plain letters, digits and signs.";
                return;
            }
            const keep = byId("key-keep").checked;
            session.set("key", keep ? null : key);
            local.set("key", keep ? key : null);
            this.#dialog.close();
            onKey(key);
        });
    }

    /** @returns {string | null} */
    get key() {
        return this.#session.get("key") ?? this.#local.get("key");
    }

    /** @param {{wrong?: boolean}} [options] `wrong`: the server has refused the one that there is. */
    ask({ wrong = false } = {}) {
        byId("key-wrong").textContent = wrong ? "The server does not take this key." : "";
        byId("key-keep").checked = this.#local.get("key") !== null;
        this.#value.value = "";
        openDialog(this.#dialog);
        this.#value.focus();
    }
}
