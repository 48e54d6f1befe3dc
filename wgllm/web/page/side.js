/** The list of chats: finding, opening, renaming, exporting, deleting. */

import { byId, icon, make, place } from "./dom.js";
import { day } from "./format.js";
import { visible } from "./text.js";

/**
 * @typedef {import("./store.js").Summary} Summary
 * @typedef {{item: HTMLElement, go: HTMLElement, more: HTMLElement}} Entry
 * @typedef {{
 *     open: (id: string) => void, create: () => void, rename: (id: string, title: string) => void,
 *     remove: (id: string) => void, exportAs: (id: string, kind: "md" | "json") => void,
 *     search: (text: string) => Promise<Set<string>>, importFiles: (files: File[]) => void,
 * }} Handlers
 */

const NARROW = "(width < 800px)";

export class Side {
    #handlers;
    #side = byId("side");
    #list = byId("chats");
    #search = byId("search");
    #menu = byId("menu");
    /** @type {Summary[]} */ #summaries = [];
    /** @type {Set<string> | null} What was found; null: nothing is looked for. */ #found = null;
    #open = "";
    #busy = "";
    #asked = 0;
    /** @type {Map<string, Entry>} By the chat's id. */ #entries = new Map();
    /** @type {Map<string, [heading: HTMLElement, list: HTMLElement]>} By the heading's text. */ #groups =
        new Map();
    #none = make("p", { className: "none" });

    /** @param {Handlers} handlers */
    constructor(handlers) {
        this.#handlers = handlers;
        for (const id of ["new-chat", "new-chat-bar"]) {
            byId(id).addEventListener("click", () => {
                this.setShown(false);
                handlers.create();
            });
        }
        byId("open-side").addEventListener("click", () => this.setShown(true));
        byId("close-side").addEventListener("click", () => this.setShown(false));
        byId("scrim").addEventListener("click", () => this.setShown(false));
        this.#search.addEventListener("input", () => void this.#find());
        this.#search.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
            const first = this.#list.querySelector(".go");
            if (event.key === "ArrowDown" || event.key === "Enter") {
                event.preventDefault();
                if (event.key === "Enter") {
                    first?.click();
                } else {
                    first?.focus();
                }
            } else if (event.key === "Escape" && this.#search.value !== "") {
                event.stopPropagation();
                this.#search.value = "";
                void this.#find();
            }
        });
        this.#list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) =>
            moveFocus(event, this.#list, ".go"),
        );
        this.#side.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
            if (event.key === "Escape" && this.#side.classList.contains("shown")) {
                event.stopPropagation();
                this.setShown(false);
            }
        });
        // Before what is clicked acts, so that a dialog gives the focus back to what is still to be seen.
        const foot = this.#side.querySelector(".side-foot");
        foot.addEventListener("click", () => this.setShown(false), { capture: true });
        byId("open-import").addEventListener("click", () => byId("import-file").click());
        byId("import-file").addEventListener("change", (/** @type {any} */ { target }) => {
            handlers.importFiles(Array.from(target.files));
            target.value = "";
        });
        this.#menu.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) =>
            moveFocus(event, this.#menu, "button"),
        );
        matchMedia(NARROW).addEventListener("change", () => this.setShown(false));
    }

    /** @param {{summaries?: Summary[], open?: string, busy?: string}} changes `busy`: where a reply is generated. */
    show({ summaries = this.#summaries, open = this.#open, busy = this.#busy }) {
        const changed = summaries !== this.#summaries;
        // The open chat is listed for the first time: whoever wrote it wants to see it there.
        if (changed && has(summaries, open) && !has(this.#summaries, open)) {
            this.#search.value = "";
        }
        this.#summaries = summaries;
        this.#open = open;
        this.#busy = busy;
        if (changed && (this.#found !== null || this.#search.value !== "")) {
            void this.#find();
        } else {
            this.#draw();
        }
    }

    /** On narrow screens, where the list lies over the conversation. @param {boolean} shown */
    setShown(shown) {
        if (this.#side.classList.contains("shown") === shown) {
            return;
        }
        this.#side.classList.toggle("shown", shown);
        byId("scrim").hidden = !shown;
        byId("main").inert = shown;
        byId("open-side").setAttribute("aria-expanded", String(shown));
        (shown ? byId("close-side") : byId("open-side")).focus();
    }

    focusSearch() {
        if (matchMedia(NARROW).matches) {
            this.setShown(true);
        }
        this.#search.focus();
        this.#search.select();
    }

    async #find() {
        const text = this.#search.value.trim();
        const asked = ++this.#asked;
        const found = text === "" ? null : await this.#handlers.search(text);
        if (asked === this.#asked) {
            this.#found = found;
            this.#draw();
        }
    }

    #draw() {
        if (this.#list.querySelector(".rename")) {
            return; // its end draws
        }
        const held = document.activeElement;
        const items = Array.from(this.#list.querySelectorAll("li"));
        const at = items.findIndex((item) => item.contains(held));
        const listed = this.#summaries.filter(({ id }) => this.#found === null || this.#found.has(id));
        const now = Date.now();
        /** @type {Map<string, HTMLElement[]>} */
        const groups = new Map();
        for (const summary of listed) {
            const name = day(summary.updated, now);
            const group = groups.get(name) ?? [];
            group.push(this.#entry(summary).item);
            groups.set(name, group);
        }
        this.#none.textContent = this.#found ? "No chat has these words." : "No chats yet.";
        place(
            this.#list,
            listed.length === 0
                ? [this.#none]
                : Array.from(groups.keys(), (name) => this.#group(name)).flat(),
        );
        for (const [name, entries] of groups) {
            place(this.#group(name)[1], entries);
        }
        const kept = new Set(this.#summaries.map(({ id }) => id));
        for (const id of this.#entries.keys()) {
            if (!kept.has(id)) {
                this.#entries.delete(id);
            }
        }
        if (at >= 0 && document.activeElement !== held) {
            this.#focusAgain(/** @type {HTMLElement} */ (held), at);
        }
    }

    /** @param {string} name */
    #group(name) {
        const group = this.#groups.get(name) ?? [make("h2", {}, name), make("ul")];
        this.#groups.set(name, group);
        return group;
    }

    /** @param {HTMLElement} held What had the focus. @param {number} at In which entry of the list. */
    #focusAgain(held, at) {
        const all = this.#list.querySelectorAll(".go");
        (held.isConnected ? held : (all[Math.min(at, all.length - 1)] ?? byId("new-chat"))).focus();
    }

    /** @param {Summary} summary @returns {Entry} */
    #entry({ id, title }) {
        const entry = this.#entries.get(id) ?? this.#made(id);
        this.#entries.set(id, entry);
        const { item, go, more } = entry;
        const shown = visible(title) || "New chat";
        if (go.textContent !== shown) {
            go.textContent = go.title = shown;
            more.ariaLabel = `Options of “${shown}”`;
        }
        go.classList.toggle("busy", id === this.#busy);
        item.classList.toggle("open", id === this.#open);
        go.ariaCurrent = id === this.#open ? "page" : null;
        return entry;
    }

    /** @param {string} id @returns {Entry} */
    #made(id) {
        const go = make("button", { type: "button", className: "go", dir: "auto" });
        go.addEventListener("click", () => {
            this.setShown(false);
            this.#handlers.open(id);
        });
        const more = make("button", { type: "button", className: "icon-button more" }, icon("more"));
        more.ariaHasPopup = "menu";
        more.addEventListener("click", () => this.#openMenu(id, more));
        return { item: make("li", { "data-id": id }, go, more), go, more };
    }

    /** @param {string} id @param {HTMLElement} button */
    #openMenu(id, button) {
        /** @param {string} label @param {() => void} act @param {string} [className] */
        const item = (label, act, className = "") => {
            const made = make("button", { type: "button", role: "menuitem", className, tabIndex: -1 }, label);
            made.addEventListener("click", () => {
                this.#menu.hidePopover();
                button.focus();
                act();
            });
            return made;
        };
        this.#menu.replaceChildren(
            item("Rename", () => this.#rename(id)),
            item("Export as Markdown", () => this.#handlers.exportAs(id, "md")),
            item("Export as JSON", () => this.#handlers.exportAs(id, "json")),
            item("Delete", () => this.#handlers.remove(id), "danger"),
        );
        this.#menu.showPopover();
        const at = button.getBoundingClientRect();
        const { offsetWidth, offsetHeight } = this.#menu;
        this.#menu.style.left = `${Math.max(8, Math.min(at.left, innerWidth - offsetWidth - 8))}px`;
        this.#menu.style.top = `${at.bottom + offsetHeight + 8 < innerHeight ? at.bottom + 2 : at.top - offsetHeight - 2}px`;
        this.#menu.firstElementChild.focus();
    }

    /** @param {string} id */
    #rename(id) {
        const entry = this.#entries.get(id);
        const summary = this.#summaries.find((one) => one.id === id);
        if (!entry?.item.isConnected || !summary) {
            return;
        }
        const field = make("input", {
            className: "rename",
            value: summary.title,
            maxLength: 200,
            dir: "auto",
            "aria-label": "Title of the chat",
        });
        let over = false;
        /** @param {boolean} keep */
        const end = (keep) => {
            if (over) {
                return;
            }
            over = true;
            const title = field.value.trim();
            entry.item.replaceChildren(entry.go, entry.more);
            if (keep && title !== "" && title !== summary.title) {
                this.#handlers.rename(id, title);
            }
            this.#draw();
        };
        field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
            event.stopPropagation();
            if ((event.key === "Enter" && !event.isComposing) || event.key === "Escape") {
                end(event.key === "Enter");
                entry.go.focus();
            }
        });
        field.addEventListener("blur", () => end(true));
        entry.item.replaceChildren(field);
        field.focus();
        field.select();
    }
}

/** @param {Summary[]} summaries @param {string} id */
function has(summaries, id) {
    return summaries.some((summary) => summary.id === id);
}

/** Arrow keys, Home and End in a list. @param {KeyboardEvent} event @param {HTMLElement} list @param {string} selector */
function moveFocus(event, list, selector) {
    /** @type {HTMLElement[]} */
    const items = Array.from(list.querySelectorAll(selector));
    const at = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to !== undefined && at >= 0) {
        event.preventDefault();
        items[Math.max(0, Math.min(items.length - 1, to))]?.focus();
    }
}
