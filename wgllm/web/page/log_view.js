/** The conversation on the screen: its messages, drawn once per frame, and scrolling that follows. */

import { byId, copyText } from "./dom.js";
import { MessageView } from "./message_view.js";
import { branch, childrenOf } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat @typedef {import("./tree.js").Message} Message */

/** So near to the end, in pixels, whoever scrolls down has come to it; who is nearer yet is at it, with what is rounded. */
const NEAR = 40;
const AT = 2;

/** Of what drawing a frame took, this many times passes before the next, so that keys never wait. */
const REST = 4;

export class LogView {
    /** @type {Map<string, {view: MessageView, key: string}>} In the order of the branch. */ #views =
        new Map();
    /** @type {Map<string, string>} What was begun in messages that are not shown now. */ #drafts = new Map();
    #log = byId("log");
    #scroller = byId("scroller");
    #toBottom = byId("to-bottom");
    #handlers;
    #following = true;
    #lastTop = 0;
    /** @type {Map<string, import("./reply.js").Live | null>} What must be drawn again. */ #changed =
        new Map();
    #scheduled = false;

    /** @param {import("./message_view.js").Handlers} handlers */
    constructor(handlers) {
        this.#handlers = handlers;
        this.#scroller.addEventListener("scroll", () => this.#look(), { passive: true });
        this.#toBottom.addEventListener("click", () => this.toBottom());
        this.#log.addEventListener("click", (/** @type {Event} */ event) => void copyCode(event.target));
        new ResizeObserver(() => this.#follow()).observe(this.#scroller);
    }

    /**
     * Shows the chat's branch; what is shown already stays.
     * @param {Chat} chat
     * @param {{jump?: boolean, running?: import("./reply.js").Reply | null}} [options] `running`: what is generated in it.
     */
    show(chat, { jump = false, running = null } = {}) {
        const path = branch(chat);
        const held = this.#held();
        /** @type {Map<string, {view: MessageView, key: string}>} */
        const views = new Map();
        for (const message of path) {
            const siblings = childrenOf(chat, message.parent);
            const place = { index: siblings.findIndex(({ id }) => id === message.id), of: siblings.length };
            const key = `${place.index}/${place.of} ${message.state} ${message.version}`;
            const old = this.#views.get(message.id);
            const view = old?.view ?? this.#made(message);
            if (old?.key !== key || view.message !== message) {
                view.show(message, place, running?.message.id === message.id ? running.live : null);
            }
            views.set(message.id, { key, view });
        }
        for (const [id, { view }] of this.#views) {
            if (!views.has(id) && view.draft !== null) {
                this.#drafts.set(id, view.draft);
            }
        }
        this.#views = views;
        const elements = Array.from(views.values(), ({ view }) => view.element);
        const shown = Array.from(this.#log.children);
        const same = elements.findIndex((element, i) => element !== shown[i]);
        const from = same < 0 ? elements.length : same;
        shown
            .slice(from)
            .forEach((/** @type {any} */ element) => elements.includes(element) || element.remove());
        this.#log.append(...elements.slice(from));
        if (held !== null && document.activeElement === document.body && elements.length > 0) {
            const id = elements[Math.min(held.at, elements.length - 1)].dataset.id;
            this.view(id ?? "")?.focus(held.name);
        }
        if (jump) {
            this.toBottom();
        } else {
            this.#follow();
        }
    }

    /** @param {Message} message */
    #made(message) {
        const view = new MessageView(message, this.#handlers);
        const draft = this.#drafts.get(message.id);
        if (draft !== undefined) {
            this.#drafts.delete(message.id);
            view.edit(draft);
        }
        return view;
    }

    /** The button that has the focus, and of which message. */
    #held() {
        const focused = document.activeElement;
        const message = focused?.closest(".message") ?? null;
        const at = Array.from(this.#log.children).indexOf(/** @type {any} */ (message));
        return at < 0 ? null : { at, name: focused?.ariaLabel ?? "" };
    }

    /** Draws a message with the next frame. @param {Message} message @param {import("./reply.js").Live | null} live */
    update(message, live) {
        if (this.#views.has(message.id)) {
            this.#changed.set(message.id, live);
            this.#schedule(0);
        }
    }

    /** @param {string} id @returns {MessageView | undefined} */
    view(id) {
        return this.#views.get(id)?.view;
    }

    toBottom() {
        this.#following = true;
        this.#follow();
    }

    /** @param {number} wait In milliseconds. */
    #schedule(wait) {
        if (!this.#scheduled) {
            this.#scheduled = true;
            setTimeout(() => requestAnimationFrame(() => this.#draw()), wait);
        }
    }

    #draw() {
        const started = performance.now();
        for (const [id, live] of this.#changed) {
            this.#views.get(id)?.view.update(live);
        }
        this.#changed.clear();
        this.#follow();
        const took = performance.now() - started;
        // What comes meanwhile waits in #changed.
        setTimeout(
            () => {
                this.#scheduled = false;
                if (this.#changed.size > 0) {
                    this.#schedule(0);
                }
            },
            took > 8 ? took * REST : 0,
        );
    }

    /** Whoever scrolls up is left there; whoever comes back to the end is taken along again. */
    #look() {
        const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
        const left = scrollHeight - scrollTop - clientHeight;
        // What gets shorter takes whoever is at its end up along with it: that is no scrolling.
        if (left < AT || (left < NEAR && scrollTop > this.#lastTop)) {
            this.#following = true;
        } else if (scrollTop < this.#lastTop) {
            this.#following = false; // also by a little: what is drawn next must not take that back
        }
        this.#lastTop = scrollTop;
        this.#toBottom.hidden = left < NEAR || this.#following;
    }

    #follow() {
        if (this.#following) {
            this.#scroller.scrollTop = this.#scroller.scrollHeight;
        }
        this.#look();
    }
}

/** @param {EventTarget | null} target Of a click: maybe the button of a code block. */
async function copyCode(target) {
    const button = target instanceof Element ? target.closest(".copy-code") : null;
    const code = button?.closest(".code-block")?.querySelector("code");
    if (button && code) {
        const done = await copyText(code.textContent ?? "");
        button.textContent = done ? "Copied" : "Can't copy";
        setTimeout(() => (button.textContent = "Copy"), 1500);
    }
}
