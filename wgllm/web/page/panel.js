/** How far the model is loaded, what the page asks before it fetches much, and what went wrong. */

import { byId, fillBar, icon, keepFocus, make, textButton } from "./dom.js";
import { bytes, count, parameters, percent, timeLeft } from "./format.js";
import { announce } from "./notices.js";
import { visible } from "./text.js";
import { explain, REMEDIES } from "./troubles.js";

/**
 * @import { ModelInfo } from "../model.js"
 * @import { Compute, Loading } from "./compute.js"
 * @import { Fault, Remedy } from "./troubles.js"
 */

export class Panel {
    #panel = byId("panel");
    #where = byId("where");
    #onRemedy;
    #drawn = "";

    /** @param {(remedy: Remedy) => void} onRemedy */
    constructor(onRemedy) {
        this.#onRemedy = onRemedy;
    }

    /**
     * Where it stands: amid an empty conversation, or above where one writes.
     * @param {{empty: boolean, told: boolean}} shown `told`: the last reply tells of an error itself.
     */
    place({ empty, told }) {
        this.#panel.dataset.told = String(told);
        byId("welcome").hidden = !empty;
        const place = empty ? byId("welcome") : byId("dock-panel");
        if (this.#panel.parentNode !== place) {
            place.append(this.#panel);
        }
    }

    /** @param {ModelInfo} info */
    showModel(info) {
        byId("model-name").textContent = visible(info.name || info.id || "A model");
        const facts = [
            info.parameters > 0 ? `${parameters(info.parameters)} parameters` : "",
            info.quantization,
            info.nbytes > 0 ? bytes(info.nbytes) : "",
            info.license,
        ];
        const told = facts
            .filter((fact) => fact)
            .map((fact) => make("span", { dir: "auto" }, visible(String(fact))));
        byId("model-facts").replaceChildren(
            ...told.flatMap((fact, i) => (i > 0 ? [make("i", {}, " · "), fact] : [fact])),
        );
    }

    /** A failure before there was a model. @param {Fault} fault */
    showFault(fault) {
        this.#drawn = "";
        this.#where.dataset.phase = "failed";
        this.#panel.dataset.phase = "failed";
        byId("where-text").textContent = byId("where-short").textContent = explain(fault, "server").short;
        this.#fill([this.#trouble(fault, "server")]);
    }

    /** @param {Compute} compute */
    show(compute) {
        const { phase, where, progress } = compute;
        this.#where.dataset.phase = this.#panel.dataset.phase = phase;
        byId("where-text").textContent = headline(compute);
        byId("where-short").textContent =
            phase === "loading" && progress
                ? percent(progress.done, progress.total)
                : where === "gpu"
                  ? "GPU"
                  : "Server";
        // A bar that is there already only grows, so that nothing is made anew with each piece.
        const drawing = `${phase} ${where}`;
        if (phase !== "loading" || drawing !== this.#drawn) {
            this.#fill(this.#content(compute));
        }
        if (phase === "ready" && drawing !== this.#drawn) {
            announce("The model is ready.");
        }
        this.#drawn = drawing;
        this.#panel.ariaBusy = String(phase === "loading");
        if (phase === "loading") {
            this.#showProgress(progress);
        }
    }

    /** @param {Node[]} nodes */
    #fill(nodes) {
        keepFocus(this.#panel, () => this.#panel.replaceChildren(...nodes));
    }

    /** @param {Compute} compute @returns {Node[]} */
    #content({ phase, where, info, facts, fault }) {
        const server = () => textButton(REMEDIES.server, "quiet", () => this.#onRemedy("server"));
        if (phase === "start") {
            return [
                make(
                    "p",
                    { className: "lead muted" },
                    where === "gpu" ? "Looking for the graphics card…" : "Asking the server…",
                ),
            ];
        }
        if (phase === "asking" && where === "server") {
            return [
                make(
                    "p",
                    { className: "lead" },
                    "The server is to compute the replies; it has not answered yet.",
                ),
                make(
                    "div",
                    { className: "buttons" },
                    textButton("Ask it again", "primary", () => this.#onRemedy("server")),
                    textButton(REMEDIES.gpu, "quiet", () => this.#onRemedy("gpu")),
                ),
            ];
        }
        if (phase === "asking") {
            const size = bytes(info.nbytes);
            return [
                make(
                    "p",
                    { className: "lead" },
                    `It will run on this device's graphics card. For that ${size} are loaded from the server, and kept in this browser.`,
                ),
                make(
                    "div",
                    { className: "buttons" },
                    textButton(`Load ${size}`, "primary", () => this.#onRemedy("gpu")),
                    server(),
                ),
            ];
        }
        if (phase === "loading") {
            return [
                make(
                    "div",
                    { className: "progress-text" },
                    make("span", { className: "stage" }),
                    make("span", { className: "muted amount" }),
                ),
                make(
                    "div",
                    { className: "progress unknown", role: "progressbar", "aria-label": "Loading the model" },
                    make("span"),
                ),
                make(
                    "div",
                    { className: "buttons" },
                    textButton("Cancel", "quiet", () => this.#onRemedy("retry")),
                    ...(where === "gpu" ? [server()] : []),
                ),
            ];
        }
        if (phase === "ready" && facts !== null) {
            const on =
                where === "gpu" || facts.where === "the server" ? facts.where : `the server (${facts.where})`;
            return [make("p", { className: "lead muted", dir: "auto" }, visible(`Runs on ${on}`))];
        }
        return fault === null ? [] : [this.#trouble(fault, where)];
    }

    /** @param {Loading | null} progress */
    #showProgress(progress) {
        const bar = this.#panel.querySelector(".progress");
        const known = progress !== null && progress.total > 0;
        bar.classList.toggle("unknown", !known);
        fillBar(bar, known ? progress.done / progress.total : 0);
        if (known) {
            bar.ariaValueNow = String(Math.floor((100 * progress.done) / progress.total));
        }
        const [stage, amount] = words(progress);
        this.#panel.querySelector(".stage").textContent = stage;
        this.#panel.querySelector(".amount").textContent = amount;
    }

    /** @param {Fault} fault @param {"gpu" | "server"} where */
    #trouble(fault, where) {
        const { title, text, remedies } = explain(fault, where);
        return make(
            "div",
            { className: "trouble", role: "alert" },
            make("h3", {}, icon("warn"), title),
            make("p", {}, text),
            make("p", { className: "said-by", dir: "auto" }, visible(fault.message)),
            make(
                "div",
                { className: "buttons" },
                ...remedies.map((remedy, i) =>
                    textButton(REMEDIES[remedy], i === 0 ? "primary" : "quiet", () => this.#onRemedy(remedy)),
                ),
            ),
        );
    }
}

/** @param {Compute} compute */
function headline({ phase, where, facts, progress, fault }) {
    const place = where === "gpu" ? "Graphics card" : "Server";
    switch (phase) {
        case "ready":
            if (facts === null) {
                return place;
            }
            return visible(
                where === "server"
                    ? `Server${facts.where === "the server" ? "" : ` · ${facts.where}`}`
                    : facts.where,
            );
        case "loading":
            return progress !== null && progress.total > 0
                ? `Loading ${percent(progress.done, progress.total)}`
                : "Loading…";
        case "failed":
            return fault === null ? "Failed" : explain(fault, where).short;
        default:
            return place;
    }
}

/** What is loaded, and how fast. @param {Loading | null} progress @returns {[stage: string, amount: string]} */
export function words(progress) {
    if (progress === null || progress.stage === "plan") {
        return ["Planning for this card…", ""];
    }
    const { stage, done, total, cached, speed } = progress;
    if (stage === "shaders") {
        return ["Compiling shaders…", total > 0 ? `${count(done)} of ${count(total)}` : ""];
    }
    const left =
        speed !== null && speed > 0 && done < total
            ? [`${bytes(speed)}/s`, `${timeLeft((total - done) / speed)} left`]
            : [];
    const stored =
        cached > 0
            ? [cached >= done ? "from this browser's storage" : `${bytes(cached)} were stored here`]
            : [];
    return ["Loading weights…", [`${bytes(done)} of ${bytes(total)}`, ...left, ...stored].join(" · ")];
}
