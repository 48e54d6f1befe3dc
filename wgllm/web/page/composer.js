/** Where one writes. */

import { byId, focusField } from "./dom.js";

/** Under this name what was begun is kept until the tab closes. */
const KEPT = "drafts";

export class Composer {
    #input = byId("input");
    #send = byId("send");
    #stop = byId("stop");
    #busy = false;
    /** @type {Map<string, string>} What was begun, by the chat's id; that of a new one is empty. */ #drafts;
    #chat = "";

    /**
     * @param {import("./settings.js").Kept} session
     * @param {{onSend: (text: string) => boolean, onStop: () => void, onEditLast: () => void}} handlers `onSend`: whether it was taken.
     */
    constructor(session, { onSend, onStop, onEditLast }) {
        this.#drafts = draftsOf(session.get(KEPT));
        this.#input.value ||= this.#drafts.get("") ?? "";
        const send = () => {
            const text = this.#input.value.trim();
            if (text !== "" && !this.#busy && onSend(text)) {
                this.#input.value = "";
                this.#changed();
            }
        };
        byId("composer").addEventListener("submit", (/** @type {Event} */ event) => {
            event.preventDefault();
            send();
        });
        byId("skip").addEventListener("click", (/** @type {Event} */ event) => {
            event.preventDefault(); // its fragment would take the place of the chat's name
            this.#input.focus();
        });
        this.#stop.addEventListener("click", onStop);
        this.#input.addEventListener("input", () => this.#changed());
        this.#input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
            // An Enter that ends the spelling of a character sends nothing.
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
                event.preventDefault();
                send();
            } else if (event.key === "ArrowUp" && this.#input.value === "") {
                event.preventDefault();
                onEditLast();
            }
        });
        const keep = () => {
            this.#note();
            session.set(KEPT, this.#drafts.size > 0 ? JSON.stringify(Array.from(this.#drafts)) : null);
        };
        window.addEventListener("pagehide", keep);
        // Of a page in the background there may be no other word.
        document.addEventListener("visibilitychange", () => document.hidden && keep());
        this.#changed();
    }

    /** Keeps what was begun in one chat, and shows what was begun in another. @param {string} id Empty: a new one. */
    enter(id) {
        if (id !== this.#chat) {
            this.#note();
            this.#chat = id;
            this.#input.value = this.#drafts.get(id) ?? "";
            this.#changed();
        }
    }

    /** The chat that is written in has got a name. @param {string} id */
    belong(id) {
        this.#drafts.delete(this.#chat);
        this.#chat = id;
    }

    /** @param {boolean} busy A reply is generated. */
    setBusy(busy) {
        // Who pressed one of the two buttons finds the focus beside it.
        const focused = document.activeElement === this.#send || document.activeElement === this.#stop;
        this.#busy = busy;
        this.#send.hidden = busy;
        this.#stop.hidden = !busy;
        if (focused) {
            this.focus();
        }
        this.#changed();
    }

    /** @param {string} name */
    setModel(name) {
        this.#input.placeholder = `Message ${name}`;
    }

    focus() {
        focusField(this.#input);
    }

    #note() {
        if (this.#input.value.trim() === "") {
            this.#drafts.delete(this.#chat);
        } else {
            this.#drafts.set(this.#chat, this.#input.value);
        }
    }

    #changed() {
        this.#send.disabled = this.#busy || this.#input.value.trim() === "";
        if (!CSS.supports("field-sizing", "content")) {
            this.#input.style.height = "auto";
            this.#input.style.height = `${this.#input.scrollHeight}px`;
        }
    }
}

/** @param {string | null} kept @returns {Map<string, string>} */
function draftsOf(kept) {
    try {
        return new Map(JSON.parse(kept ?? "[]"));
    } catch {
        return new Map(); // somebody else's: as if there were none
    }
}
