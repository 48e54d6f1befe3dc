/**
 * What the visitor has chosen; the browser keeps it. Of sampling only what differs from the model's own values is kept.
 *
 * @import { ModelInfo, Sampling } from "../model.js"
 *
 * @typedef {keyof Sampling} Name
 * @typedef {"gpu" | "server"} Where Replies are computed.
 */

import { MOST_CANDIDATES } from "../sampling.js";

/** @typedef {{min: number, max: number, whole: boolean}} Range */

/** @type {Record<Name, Range>} */
const RANGES = {
    temperature: { min: 0, max: 5, whole: false },
    topK: { min: 0, max: 1000, whole: true },
    topP: { min: 0, max: 1, whole: false },
    minP: { min: 0, max: 1, whole: false },
    seed: { min: 0, max: Number.MAX_SAFE_INTEGER, whole: true },
    maxTokens: { min: 1, max: 1_000_000, whole: true },
};

const CARD_RANGES = { ...RANGES, topK: { min: 1, max: MOST_CANDIDATES, whole: true } };

/** @param {Name} name @param {Where} where @returns {Range} */
export function rangeOf(name, where) {
    return (where === "gpu" ? CARD_RANGES : RANGES)[name];
}

/** @type {Sampling} */
const PLAIN = { temperature: 0.8, topK: 40, topP: 0.95, minP: 0.05, seed: null, maxTokens: null };

/** As the card takes them: 0, which is all candidates, becomes as many as it looks at. @param {Sampling} sampling */
export function forCard(sampling) {
    const { topK } = sampling;
    return { ...sampling, topK: topK === 0 ? MOST_CANDIDATES : Math.min(topK, MOST_CANDIDATES) };
}

/** What the model's author, or the server, takes. @param {Partial<ModelInfo["sampling"]>} [told] @returns {Sampling} */
export function defaults(told) {
    /** @param {unknown} value @param {number} plain */
    const number = (value, plain) => (typeof value === "number" && Number.isFinite(value) ? value : plain);
    return {
        ...PLAIN,
        temperature: number(told?.temperature, 0.8),
        topK: number(told?.top_k, 40),
        topP: number(told?.top_p, 0.95),
        minP: number(told?.min_p, 0.05),
    };
}

/** A number with a point or a comma. */
const NUMBER = /^(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?$/i;

/** Some write one thousand so, others one. */
const AMBIGUOUS = /^[1-9]\d{0,2},\d{3}$/;

/**
 * What was typed, as a value; undefined where it is none, or may mean another.
 * @param {Name} name
 * @param {string} text
 * @param {Where} [where]
 * @returns {number | null | undefined}
 */
export function parsed(name, text, where = "server") {
    const { min, max, whole } = rangeOf(name, where);
    const typed = text.trim();
    if (typed === "") {
        return name === "seed" || name === "maxTokens" ? null : undefined;
    }
    if (!(whole ? /^\d+$/ : NUMBER).test(typed) || AMBIGUOUS.test(typed)) {
        return undefined;
    }
    const value = Number(typed.replace(",", "."));
    return value >= min && value <= max ? value : undefined;
}

/** Text that stays in the browser, where it lets a page keep some. */
export class Kept {
    #prefix = "wgllm.";

    /** @param {Storage | null} storage */
    constructor(storage) {
        this.storage = storage;
    }

    /** @param {string} name @returns {string | null} */
    get(name) {
        try {
            return this.storage?.getItem(this.#prefix + name) ?? null;
        } catch {
            return null;
        }
    }

    /** @param {string} name @param {string | null} value */
    set(name, value) {
        try {
            if (value === null) {
                this.storage?.removeItem(this.#prefix + name);
            } else {
                this.storage?.setItem(this.#prefix + name, value);
            }
        } catch {
            // Storage is full or forbidden: the choice holds until the page closes.
        }
    }
}

/** Contexts that a visitor can choose: powers of two up to what a model was trained for, and that. */
const LEAST_CONTEXT = 1024;

/** @param {number} trained In tokens. @returns {number[]} */
export function contextSizes(trained) {
    const sizes = [];
    for (let size = LEAST_CONTEXT; size < trained; size *= 2) {
        sizes.push(size);
    }
    return [...sizes, trained];
}

export class Settings {
    /** @type {Partial<Sampling>} */ #changed = {};
    #kept;
    #defaults = PLAIN;

    /** @param {Kept} kept */
    constructor(kept) {
        this.#kept = kept;
        /** @type {any} */
        let read = {};
        try {
            read = JSON.parse(kept.get("sampling") ?? "{}") ?? {};
        } catch {
            // Somebody else's: as if there were none.
        }
        for (const name of /** @type {Name[]} */ (Object.keys(RANGES))) {
            const value = read[name];
            const { min, max, whole } = RANGES[name];
            if (
                Number.isFinite(value) &&
                value >= min &&
                value <= max &&
                (!whole || Number.isInteger(value))
            ) {
                Object.assign(this.#changed, { [name]: value });
            }
        }
    }

    /** @param {Sampling} values The model's own. */
    useDefaults(values) {
        this.#defaults = values;
    }

    /** @returns {Sampling} */
    get defaults() {
        return this.#defaults;
    }

    /** @returns {Sampling} */
    get sampling() {
        return { ...this.#defaults, ...this.#changed };
    }

    /** What is shown of one: what was chosen, else what is computed with. @param {Name} name @param {Where} where */
    shown(name, where) {
        const usual = where === "gpu" ? forCard(this.#defaults) : this.#defaults;
        return Object.hasOwn(this.#changed, name) ? this.sampling[name] : usual[name];
    }

    /** @param {Name} name @param {number | null} value */
    set(name, value) {
        const changed = /** @type {Record<string, number | null>} */ ({ ...this.#changed, [name]: value });
        if (value === this.#defaults[name]) {
            delete changed[name];
        }
        this.#changed = changed;
        this.#kept.set("sampling", JSON.stringify(changed));
    }

    reset() {
        this.#changed = {};
        this.#kept.set("sampling", null);
    }

    /** Of new chats. @returns {string} */
    get system() {
        return this.#kept.get("system") ?? "";
    }

    set system(text) {
        this.#kept.set("system", text || null);
    }

    /** @returns {Where} */
    get where() {
        return this.#kept.get("where") === "server" ? "server" : "gpu";
    }

    set where(where) {
        this.#kept.set("where", where === "gpu" ? null : where);
    }

    /** The context that a model is loaded with on the card, in tokens; null: as large as the server takes. @returns {number | null} */
    get context() {
        const chosen = Number(this.#kept.get("context"));
        return Number.isSafeInteger(chosen) && chosen > 0 ? chosen : null;
    }

    set context(size) {
        this.#kept.set("context", size === null ? null : String(size));
    }

    /** The same for a model that was trained for so much. @param {number} trained @returns {number | null} */
    contextFor(trained) {
        const { context } = this;
        return context === null ? null : (contextSizes(trained).findLast((size) => size <= context) ?? null);
    }

    /** @returns {"auto" | "light" | "dark"} */
    get theme() {
        const theme = this.#kept.get("theme");
        return theme === "light" || theme === "dark" ? theme : "auto";
    }

    set theme(theme) {
        this.#kept.set("theme", theme === "auto" ? null : theme);
    }
}
