/** A message on the screen. */

import { icon, iconButton, make, textButton } from "./dom.js";
import { count, duration, rate } from "./format.js";
import { GrowingMarkdown } from "./growing.js";
import { waitingFor } from "./reply.js";
import { splitThought, visible } from "./text.js";
import { explain, REMEDIES } from "./troubles.js";

/**
 * @typedef {import("./tree.js").Message} Message
 * @typedef {import("./reply.js").Live} Live
 * @typedef {"copy" | "edit" | "again" | "previous" | "next" | "server" | "gpu" | "retry" | "key" | "new-chat"} Act
 * @typedef {(act: Act, message: Message, text?: string) => void} OnAct `text`: what a message was edited to.
 */

/** @type {Record<string, string>} */
const NAMES = { user: "You", assistant: "Reply", system: "System", tool: "Tool" };

export class MessageView {
    message;
    /** @type {HTMLElement} */ element;
    #onAct;
    #said;
    #markdown;
    /** @type {{details: any, markdown: GrowingMarkdown, summary: HTMLElement} | null} */ #thought = null;
    #after = make("div", { className: "after" });
    #foot = make("div", { className: "foot" });

    /**
     * @param {Message} message
     * @param {{index: number, of: number}} place Among those that answer the same.
     * @param {OnAct} onAct
     */
    constructor(message, place, onAct) {
        this.message = message;
        this.#onAct = onAct;
        this.#said = make("div", { className: message.role === "assistant" ? "said" : "body" });
        this.#markdown = message.role === "assistant" ? new GrowingMarkdown(this.#said) : null;
        this.element = make(
            "article",
            {
                className: `message ${message.role}`,
                "aria-label": NAMES[message.role],
                "data-id": message.id,
            },
            this.#said,
            this.#after,
            this.#foot,
        );
        this.#fillFoot(place);
        this.update(null);
    }

    /** Shows what there is. @param {Live | null} live While it is generated. */
    update(live) {
        const { message } = this;
        if (this.#markdown === null) {
            this.#said.textContent = visible(message.content);
            return;
        }
        const { thought, thinking, said } = splitThought(message.content);
        this.#showThought(thought, thinking && live !== null);
        this.#markdown.update(said);
        if (live === null) {
            this.#markdown.finish();
            this.#thought?.markdown.finish();
        }
        this.element.setAttribute("aria-busy", String(live !== null));
        this.#after.replaceChildren(...this.#remarks(live));
        const meta = /** @type {HTMLElement | null} */ (this.#foot.querySelector(".meta"));
        if (meta !== null) {
            meta.textContent = live === null ? figures(message) : "";
            meta.title = typeof message.stats?.seed === "number" ? `Seed ${message.stats.seed}` : "";
        }
    }

    /** @param {string | null} thought @param {boolean} thinking */
    #showThought(thought, thinking) {
        if (thought === null || (thought.trim() === "" && !thinking)) {
            this.#thought?.details.remove();
            this.#thought = null;
            return;
        }
        if (this.#thought === null) {
            const summary = make("summary", {}, "");
            const body = make("div", { className: "said" });
            const details = make("details", { className: "thought", open: thinking }, summary, body);
            this.#thought = { details, summary, markdown: new GrowingMarkdown(body) };
            this.element.insertBefore(details, this.#said);
        } else if (!thinking && this.#thought.summary.textContent !== "Reasoning") {
            this.#thought.details.open = false;
        }
        this.#thought.summary.textContent = thinking ? "Reasoning…" : "Reasoning";
        this.#thought.markdown.update(thought.trimStart());
    }

    /** @param {Live | null} live @returns {Node[]} */
    #remarks(live) {
        const { message } = this;
        if (live !== null) {
            return live.stage === "" ? [] : [make("p", { className: "waiting" }, waitingFor(live))];
        }
        /** @type {Record<string, string>} */
        const ends = {
            stopped: "Stopped",
            interrupted: "Interrupted: the page was closed while this was written",
            partial: "Being written in another tab…",
        };
        /** @type {Record<string, string>} */
        const reasons = {
            length: "Ended at the longest reply that the settings allow",
            context: "Ended where the context was full",
        };
        const words = ends[message.state] ?? reasons[message.reason ?? ""];
        if (message.state === "error" && message.error) {
            return [this.#fault(message.error)];
        }
        return words ? [make("p", { className: "mark" }, words)] : [];
    }

    /** @param {{kind: string, message: string}} fault */
    #fault(fault) {
        const trouble = explain(fault, this.message.where === "server" ? "server" : "gpu");
        const buttons = trouble.remedies.map((remedy) =>
            textButton(REMEDIES[remedy], "quiet", () => this.#onAct(remedy, this.message)),
        );
        return make(
            "div",
            { className: "fault" },
            make("p", {}, make("b", {}, `${trouble.title}.`), ` ${trouble.text}`),
            make("p", { className: "muted", dir: "auto" }, visible(fault.message)),
            make("div", { className: "buttons" }, ...buttons),
        );
    }

    /** @param {{index: number, of: number}} place */
    #fillFoot({ index, of }) {
        const { message } = this;
        /** @param {Act} act */
        const act = (act) => () => this.#onAct(act, message);
        const copy = iconButton("copy", "Copy", () => {
            this.#onAct("copy", message);
            copy.replaceChildren(icon("check"));
            setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
        });
        if (of > 1) {
            const back = iconButton("left", "Previous version", act("previous"));
            const on = iconButton("right", "Next version", act("next"));
            back.disabled = index === 0;
            on.disabled = index === of - 1;
            const where = make(
                "span",
                { "aria-label": `Version ${index + 1} of ${of}`, role: "text" },
                `${index + 1}/${of}`,
            );
            this.#foot.append(make("span", { className: "branches" }, back, where, on));
        }
        this.#foot.append(copy);
        if (message.role === "user") {
            this.#foot.append(iconButton("edit", "Edit and ask again", () => this.edit()));
        } else if (message.role === "assistant") {
            this.#foot.append(
                iconButton("again", "Another reply", act("again")),
                make("span", { className: "meta" }),
            );
        }
    }

    /** Makes the message a field, whose text is asked instead. */
    edit() {
        if (this.element.querySelector(".edit")) {
            return;
        }
        const field = make("textarea", {
            value: this.message.content,
            dir: "auto",
            "aria-label": "Edit the message",
        });
        const done = () => {
            form.remove();
            this.#said.hidden = this.#foot.hidden = false;
            this.#foot.querySelector('[aria-label^="Edit"]')?.focus();
        };
        const send = () => {
            if (field.value.trim() !== "") {
                done();
                this.#onAct("edit", this.message, field.value);
            }
        };
        const form = make(
            "div",
            { className: "edit" },
            field,
            make(
                "div",
                { className: "buttons" },
                textButton("Cancel", "quiet", done),
                textButton("Send", "primary", send),
            ),
        );
        field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
            if (event.key === "Escape") {
                event.stopPropagation();
                done();
            } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                send();
            }
        });
        this.#said.hidden = this.#foot.hidden = true;
        this.#said.before(form);
        field.focus();
        field.setSelectionRange(field.value.length, field.value.length);
    }
}

/** What a reply took, in a line. @param {Message} message */
function figures({ stats, where }) {
    if (!stats || stats.generatedTokens === 0) {
        return "";
    }
    const parts = [`${count(stats.generatedTokens)} ${stats.generatedTokens === 1 ? "token" : "tokens"}`];
    if (stats.decodeSeconds > 0 && stats.generatedTokens > 1) {
        parts.unshift(rate(stats.generatedTokens / stats.decodeSeconds));
    }
    if (stats.firstSeconds !== undefined) {
        parts.push(`first after ${duration(stats.firstSeconds)}`);
    }
    return [...parts, ...(where === "server" ? ["by the server"] : [])].join(" · ");
}
