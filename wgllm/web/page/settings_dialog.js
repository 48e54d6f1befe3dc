/** The dialog of settings: what is changed holds at once. */

import { MOST_CANDIDATES } from "../sampling.js";
import { byId, make, openDialog } from "./dom.js";
import { count } from "./format.js";
import { contextSizes, forCard, parsed, rangeOf } from "./settings.js";

/**
 * @import { ModelInfo } from "../model.js"
 * @import { Name, Settings } from "./settings.js"
 */

/**
 * @typedef {{
 *     onWhere: (where: "gpu" | "server") => void, onContext: () => void, onSystem: (text: string) => void,
 *     onKey: () => void,
 * }} Handlers `onContext`: another one may have been chosen; `onSystem`: of the chat that is open.
 */

const LABELS = {
    temperature: "Temperature",
    topK: "Top-k",
    topP: "Top-p",
    minP: "Min-p",
    seed: "Seed",
    maxTokens: "Longest reply",
};

export class SettingsDialog {
    #settings;
    #dialog = byId("settings");
    /** @type {HTMLInputElement[]} */ #fields = Array.from(this.#dialog.querySelectorAll("[data-name]"));
    #system = byId("system");
    #always = byId("system-always");
    #context = byId("set-context");
    /** @type {import("./settings.js").Where} */ #where = "gpu";

    /** @param {Settings} settings @param {Handlers} handlers */
    constructor(settings, handlers) {
        this.#settings = settings;
        for (const field of this.#fields) {
            field.addEventListener("input", () => {
                const name = /** @type {Name} */ (field.dataset.name);
                const value = parsed(name, field.value, this.#where);
                if (value !== undefined) {
                    settings.set(name, value);
                }
                this.#check();
            });
        }
        byId("reset-sampling").addEventListener("click", () => {
            settings.reset();
            this.#fill();
        });
        this.#radios("where").forEach((radio) =>
            radio.addEventListener("change", () => handlers.onWhere(/** @type {any} */ (radio.value))),
        );
        this.#radios("theme").forEach((radio) =>
            radio.addEventListener("change", () => {
                settings.theme = /** @type {any} */ (radio.value);
                applyTheme(settings.theme);
            }),
        );
        this.#context.addEventListener("change", () => {
            const { value } = this.#context;
            settings.context = value === "" ? null : Number(value);
        });
        // Not at each step of the keyboard through the list: the model is loaded anew.
        this.#dialog.addEventListener("close", handlers.onContext);
        const system = () => {
            handlers.onSystem(this.#system.value);
            if (this.#always.checked) {
                settings.system = this.#system.value;
            }
        };
        this.#system.addEventListener("change", system);
        this.#dialog.addEventListener("close", system);
        this.#always.addEventListener("change", () => {
            settings.system = this.#always.checked ? this.#system.value : "";
        });
        byId("change-key").addEventListener("click", () => {
            this.#dialog.close();
            handlers.onKey();
        });
    }

    /** @param {{system: string, where: "gpu" | "server", info: ModelInfo | null}} now `system`: of the open chat. */
    open({ system, where, info }) {
        this.#offerContexts(info);
        this.setWhere(where);
        this.#radios("theme").forEach((radio) => (radio.checked = radio.value === this.#settings.theme));
        this.#system.value = system;
        this.#always.checked = this.#settings.system !== "" && this.#settings.system === system;
        byId("system-hint").textContent =
            info?.has_system === false
                ? "This model's template has no place for one; it may be ignored."
                : "";
        openDialog(this.#dialog);
        // The browser would take the first button, which closes it.
        this.#radios("where")
            .find(({ checked }) => checked)
            ?.focus();
    }

    /** @param {"gpu" | "server"} where */
    setWhere(where) {
        this.#where = where;
        this.#radios("where").forEach((radio) => (radio.checked = radio.value === where));
        byId("topK-hint").textContent =
            where === "gpu"
                ? `of so many likeliest tokens, ${MOST_CANDIDATES} at most on the card`
                : "of so many likeliest tokens; 0: of all";
        this.#fill();
    }

    /** @param {ModelInfo | null} info */
    #offerContexts(info) {
        const chosen = info === null ? this.#settings.context : this.#settings.contextFor(info.n_ctx_train);
        const sizes = info !== null ? contextSizes(info.n_ctx_train) : chosen === null ? [] : [chosen];
        const others = sizes.map((size) => make("option", { value: String(size) }, count(size)));
        this.#context.replaceChildren(make("option", { value: "" }, "usual"), ...others);
        const usual = info === null ? "" : `, usually ${count(info.ctx_size)}`;
        byId("context-hint").textContent = `tokens of a conversation${usual}; fewer take less of its memory`;
        this.#context.value = chosen === null ? "" : String(chosen);
    }

    #fill() {
        for (const field of this.#fields) {
            const value = this.#settings.shown(/** @type {Name} */ (field.dataset.name), this.#where);
            field.value = value === null ? "" : String(value);
        }
        this.#check();
    }

    /** Tells of fields whose text is no value here. */
    #check() {
        /** @type {Name[]} */
        const wrong = [];
        for (const field of this.#fields) {
            const name = /** @type {Name} */ (field.dataset.name);
            const isWrong = parsed(name, field.value, this.#where) === undefined;
            field.ariaInvalid = String(isWrong);
            wrong.push(...(isWrong ? [name] : []));
        }
        byId("settings-wrong").textContent = wrong.map((name) => this.#complaint(name)).join(" ");
    }

    /** @param {Name} name */
    #complaint(name) {
        const { min, max, whole } = rangeOf(name, this.#where);
        const must = `${LABELS[name]} must be ${whole ? "a whole number" : "a number"} from ${min} to ${max}`;
        const taken = this.#where === "gpu" ? forCard(this.#settings.sampling) : this.#settings.sampling;
        return `${must}. Until then it is ${taken[name] ?? "not set"}.`;
    }

    /** @param {string} name @returns {HTMLInputElement[]} */
    #radios(name) {
        return Array.from(this.#dialog.querySelectorAll(`input[name="${name}"]`));
    }
}

/** @param {"auto" | "light" | "dark"} theme */
function applyTheme(theme) {
    if (theme === "auto") {
        delete document.documentElement.dataset.theme;
    } else {
        document.documentElement.dataset.theme = theme;
    }
}
