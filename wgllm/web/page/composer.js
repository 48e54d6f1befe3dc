/** Where one writes. */

import { byId } from "./dom.js";

export class Composer {
    #input = byId("input");
    #send = byId("send");
    #stop = byId("stop");
    #busy = false;
    #drafts = new Map();
    #chat = "";

    /** @param {{onSend: (text: string) => boolean, onStop: () => void, onEditLast: () => void}} handlers `onSend`: whether it was taken. */
    constructor({ onSend, onStop, onEditLast }) {
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
    }

    /** Keeps what was begun in one chat, and shows what was begun in another. @param {string} id */
    enter(id) {
        this.#drafts.set(this.#chat, this.#input.value);
        this.#chat = id;
        this.#input.value = this.#drafts.get(id) ?? "";
        this.#changed();
    }

    /** @param {boolean} busy A reply is generated. */
    setBusy(busy) {
        // Who pressed one of the two buttons finds the focus on the other.
        const focused = document.activeElement === this.#send || document.activeElement === this.#stop;
        this.#busy = busy;
        this.#send.hidden = busy;
        this.#stop.hidden = !busy;
        if (focused) {
            this.#input.focus();
        }
        this.#changed();
    }

    /** @param {string} name */
    setModel(name) {
        this.#input.placeholder = `Message ${name}`;
    }

    /** Where keys are at hand; elsewhere a focus would bring up a keyboard over half the screen. */
    focus() {
        if (!matchMedia("(pointer: coarse)").matches) {
            this.#input.focus();
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
