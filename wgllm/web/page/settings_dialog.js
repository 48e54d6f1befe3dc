/** The dialog of settings: what is changed holds at once. */

import { MOST_CANDIDATES } from "../sampling.js";
import { byId, openDialog } from "./dom.js";
import { parsed, RANGES } from "./settings.js";

/** @typedef {import("./settings.js").Settings} Settings @typedef {import("./settings.js").Name} Name */

/**
 * @typedef {{
 *     onWhere: (where: "gpu" | "server") => void, onSystem: (text: string) => void, onKey: () => void,
 * }} Handlers `onSystem`: of the chat that is open.
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

    /** @param {Settings} settings @param {Handlers} handlers */
    constructor(settings, handlers) {
        this.#settings = settings;
        for (const field of this.#fields) {
            field.addEventListener("input", () => this.#read(field));
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

    /** @param {{system: string, where: "gpu" | "server", hasSystem: boolean}} now Of the open chat; `hasSystem`: the model reads one. */
    open({ system, where, hasSystem }) {
        this.#fill();
        this.setWhere(where);
        this.#radios("theme").forEach((radio) => (radio.checked = radio.value === this.#settings.theme));
        this.#system.value = system;
        this.#always.checked = this.#settings.system !== "" && this.#settings.system === system;
        byId("system-hint").textContent = hasSystem
            ? ""
            : "This model's template has no place for one; it may be ignored.";
        openDialog(this.#dialog);
    }

    /** @param {"gpu" | "server"} where */
    setWhere(where) {
        this.#radios("where").forEach((radio) => (radio.checked = radio.value === where));
        RANGES.topK.max = where === "gpu" ? MOST_CANDIDATES : 1000;
        byId("topK-hint").textContent =
            where === "gpu"
                ? `of so many likeliest tokens, ${MOST_CANDIDATES} at most on the card`
                : "of so many likeliest tokens; 0: of all";
        RANGES.topK.min = where === "gpu" ? 1 : 0;
    }

    #fill() {
        const values = this.#settings.sampling;
        for (const field of this.#fields) {
            const value = values[/** @type {Name} */ (field.dataset.name)];
            field.value = value === null ? "" : String(value);
            field.setAttribute("aria-invalid", "false");
        }
        byId("settings-wrong").textContent = "";
    }

    /** @param {HTMLInputElement} field */
    #read(field) {
        const name = /** @type {Name} */ (field.dataset.name);
        const value = parsed(name, field.value);
        field.setAttribute("aria-invalid", String(value === undefined));
        if (value !== undefined) {
            this.#settings.set(name, value);
        }
        const wrong = this.#fields.find((one) => one.getAttribute("aria-invalid") === "true");
        const of = /** @type {Name | undefined} */ (wrong?.dataset.name);
        byId("settings-wrong").textContent = of
            ? `${LABELS[of]} must be ${RANGES[of].whole ? "a whole number" : "a number"} from ${RANGES[of].min} to ${RANGES[of].max}.`
            : "";
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
