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
 * @typedef {"copy" | "again" | "previous" | "next" | "server" | "gpu" | "retry" | "key" | "new-chat"} Act
 * @typedef {{act: (act: Act, message: Message) => void, edit: (message: Message, text: string) => boolean}} Handlers
 *     `edit`: asks something else instead; gives whether that was taken.
 * @typedef {{index: number, of: number}} Place Among those that answer the same.
 */

/** @type {Record<string, string>} */
const NAMES = { user: "You", assistant: "Reply", system: "System", tool: "Tool" };

export class MessageView {
    message;
    /** @type {HTMLElement} */ element;
    #handlers;
    #said;
    #markdown;
    /** @type {{details: any, markdown: GrowingMarkdown, summary: HTMLElement} | null} */ #thought = null;
    #after = make("div", { className: "after" });
    #foot = make("div", { className: "foot" });
    #back = iconButton("left", "Previous version", () => this.#handlers.act("previous", this.message));
    #on = iconButton("right", "Next version", () => this.#handlers.act("next", this.message));
    #branches = make("span", { className: "branches", role: "group" }, this.#back, make("span"), this.#on);
    /** @type {HTMLTextAreaElement | null} */ #field = null;

    /** @param {Message} message @param {Handlers} handlers */
    constructor(message, handlers) {
        this.message = message;
        this.#handlers = handlers;
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
        this.#fillFoot();
    }

    /** Shows the message as it is now. @param {Message} message @param {Place} place @param {Live | null} live While it is generated. */
    show(message, { index, of }, live) {
        this.message = message;
        if (of > 1) {
            this.#foot.prepend(this.#branches);
        } else {
            this.#branches.remove();
        }
        this.#branches.ariaLabel = `Version ${index + 1} of ${of}`;
        this.#branches.children[1].textContent = `${index + 1}/${of}`;
        this.#back.disabled = index === 0;
        this.#on.disabled = index === of - 1;
        this.update(live);
    }

    /** What stands in its field while it is edited. @returns {string | null} */
    get draft() {
        return this.#field?.value ?? null;
    }

    /** Gives the focus to a button, by its name; where it has none of it, to the message. @param {string} name */
    focus(name) {
        /** @type {NodeListOf<HTMLButtonElement>} */
        const all = this.#foot.querySelectorAll("button:enabled");
        const buttons = Array.from(all).filter((each) => each.checkVisibility({ visibilityProperty: true }));
        const same = buttons.find(({ ariaLabel }) => ariaLabel === name);
        // At the last version, "next" is followed by "previous".
        const turns =
            name.endsWith(" version") && buttons.find((each) => each.parentElement === this.#branches);
        this.element.tabIndex = -1;
        (same ?? (turns || this.element)).focus({ preventScroll: true });
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
            textButton(REMEDIES[remedy], "quiet", () => this.#handlers.act(remedy, this.message)),
        );
        return make(
            "div",
            { className: "fault" },
            make("p", {}, make("b", {}, `${trouble.title}.`), ` ${trouble.text}`),
            make("p", { className: "muted", dir: "auto" }, visible(fault.message)),
            make("div", { className: "buttons" }, ...buttons),
        );
    }

    #fillFoot() {
        const copy = iconButton("copy", "Copy", () => {
            this.#handlers.act("copy", this.message);
            copy.replaceChildren(icon("check"));
            setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
        });
        this.#foot.append(copy);
        if (this.message.role === "user") {
            this.#foot.append(iconButton("edit", "Edit and ask again", () => this.edit()));
        } else if (this.message.role === "assistant") {
            const again = iconButton("again", "Another reply", () =>
                this.#handlers.act("again", this.message),
            );
            this.#foot.append(again, make("span", { className: "meta" }));
        }
    }

    /** Makes the message a field, whose text is asked instead. @param {string} [draft] What was begun before. */
    edit(draft) {
        if (this.#field !== null) {
            this.#field.focus();
            return;
        }
        const field = make("textarea", {
            value: draft ?? this.message.content,
            dir: "auto",
            "aria-label": "Edit the message",
        });
        const done = () => {
            this.#field = null;
            form.remove();
            this.#said.hidden = this.#foot.hidden = false;
        };
        const cancel = () => {
            done();
            this.focus("Edit and ask again");
        };
        const send = () => {
            this.#field = null; // what is sent is no draft any more
            if (field.value.trim() !== "" && this.#handlers.edit(this.message, field.value)) {
                done();
            } else {
                this.#field = field;
            }
        };
        const form = make(
            "div",
            { className: "edit" },
            field,
            make(
                "div",
                { className: "buttons" },
                textButton("Cancel", "quiet", cancel),
                textButton("Send", "primary", send),
            ),
        );
        field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
            if (event.key === "Escape") {
                event.stopPropagation();
                cancel();
            } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                send();
            }
        });
        this.#field = field;
        this.#said.hidden = this.#foot.hidden = true;
        this.#said.before(form);
        if (draft === undefined) {
            field.focus();
            field.setSelectionRange(field.value.length, field.value.length);
        }
    }
}

/** What a reply took, in a line. @param {Message} message */
function figures({ stats, where }) {
    if (!stats || stats.generatedTokens === 0) {
        return "";
    }
    const parts = [`${count(stats.generatedTokens)} ${stats.generatedTokens === 1 ? "token" : "tokens"}`];
    if (stats.decodeSeconds > 0 && stats.generatedTokens > 1) {
        // The first comes from reading the prompt, before that time begins.
        parts.unshift(rate((stats.generatedTokens - 1) / stats.decodeSeconds));
    }
    if (stats.firstSeconds !== undefined) {
        parts.push(`first after ${duration(stats.firstSeconds)}`);
    }
    return [...parts, ...(where === "server" ? ["by the server"] : [])].join(" · ");
}
