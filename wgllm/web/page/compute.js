/** What computes replies: on this device or on the server, how far it is loaded, and what went wrong. */

import { Speed } from "./format.js";
import { faultOf } from "./troubles.js";

/**
 * @import { Api } from "../api.js"
 * @import { Facts, LoadProgress, Model, ModelInfo } from "../model.js"
 * @import { Fault } from "./troubles.js"
 * @import { Stored } from "../store.js"
 *
 * @typedef {LoadProgress & {speed: number | null}} Loading
 * @typedef {"start" | "asking" | "loading" | "ready" | "failed"} Phase
 */

/** What loads at the same time, in the order in which it is told. */
const STAGES = ["weights", "shaders"];

/** Bytes that nobody minds being fetched without having been asked. */
const SMALL = 200e6;

export class Compute {
    /** @type {Phase} */ phase = "start";
    /** @type {"gpu" | "server"} */ where = "gpu";
    /** @type {Model | null} */ model = null;
    /** What `load` told. @type {Facts | null} */ facts = null;
    /** @type {Fault | null} */ fault = null;
    /** @type {Loading | null} */ progress = null;
    onChange = () => {};
    /** @type {ModelInfo} */ info;
    #api;
    #makers;
    #stop = new AbortController();
    /** @type {{resolve: (model: Model) => void, reject: (error: unknown) => void}[]} */ #waiting = [];

    /**
     * @param {Api} api
     * @param {ModelInfo} info
     * @param {{gpu: (api: Api) => Model, server: (api: Api) => Model, obstacle: () => Promise<Error | null>,
     *     stored: () => Promise<Stored>}} makers
     */
    constructor(api, info, makers) {
        this.#api = api;
        this.info = info;
        this.#makers = makers;
    }

    /**
     * Goes to where replies are to be computed; there it loads at once, or asks where that is much to fetch.
     * @param {"gpu" | "server"} where
     * @param {{ask?: boolean}} [options]
     */
    async choose(where, { ask = false } = {}) {
        this.#drop();
        this.where = where;
        this.#become("start");
        const stop = this.#stop;
        try {
            const obstacle = where === "gpu" ? await this.#makers.obstacle() : null;
            if (obstacle !== null) {
                throw obstacle;
            }
            if (stop.signal.aborted) {
                return;
            }
            const model = this.#makers[where](this.#api);
            this.model = model;
            model.onLost = (error) => this.fail(error);
            model.onFacts = (facts) => {
                this.facts = facts;
                this.onChange();
            };
            if (ask && where === "gpu" && !(await this.#isCheap())) {
                if (!stop.signal.aborted) {
                    this.#become("asking");
                }
                return;
            }
        } catch (error) {
            if (!stop.signal.aborted) {
                this.fail(error);
            }
            return;
        }
        if (!stop.signal.aborted) {
            await this.load();
        }
    }

    /** Whether it can be used, or will be soon. */
    get isUp() {
        return this.phase === "loading" || this.phase === "ready";
    }

    async load() {
        const model = this.model;
        if (model === null) {
            await this.choose(this.where);
            return;
        }
        const { signal } = this.#stop;
        this.#become("loading");
        const progress = new LoadingStages();
        try {
            const facts = await model.load({
                signal,
                onProgress: (told) => {
                    if (!signal.aborted) {
                        progress.add(told, performance.now() / 1000);
                        this.progress = progress.shown;
                        this.onChange();
                    }
                },
            });
            if (signal.aborted) {
                return;
            }
            this.facts = facts;
            this.#become("ready");
            for (const { resolve } of this.#waiting.splice(0)) {
                resolve(model);
            }
        } catch (error) {
            if (!signal.aborted) {
                this.fail(error);
            }
        }
    }

    /** Stops loading, and asks. */
    cancel() {
        const where = this.where;
        this.#drop();
        this.where = where;
        this.#become("asking");
        this.#rejectAll(new DOMException("loading was stopped", "AbortError"));
    }

    /** The model, once it is loaded. @param {AbortSignal} signal @returns {Promise<Model>} */
    ready(signal) {
        if (this.phase === "ready" && this.model !== null) {
            return Promise.resolve(this.model);
        }
        return new Promise((resolve, reject) => {
            this.#waiting.push({ resolve, reject });
            signal.addEventListener("abort", () => reject(signal.reason), { once: true });
            if (this.phase === "asking") {
                void this.load();
            } else if (this.phase === "failed") {
                void this.choose(this.where);
            }
        });
    }

    /** The model can't go on. @param {unknown} error */
    fail(error) {
        this.#drop();
        this.fault = faultOf(error);
        this.#become("failed");
        this.#rejectAll(error);
    }

    #drop() {
        this.#stop.abort();
        this.#stop = new AbortController();
        const model = this.model;
        this.model = null;
        this.facts = null;
        if (model !== null) {
            model.onLost = model.onFacts = null;
            model.close();
        }
    }

    /** @param {Phase} phase */
    #become(phase) {
        this.phase = phase;
        this.progress = null;
        if (phase !== "failed") {
            this.fault = null;
        }
        this.onChange();
    }

    /** @param {unknown} error */
    #rejectAll(error) {
        for (const { reject } of this.#waiting.splice(0)) {
            reject(error);
        }
    }

    /** Why the weights are not kept by the browser; empty where they are, or are not its matter. */
    get storeProblem() {
        const { facts } = this;
        return facts !== null && "storeProblem" in facts ? (facts.storeProblem ?? "") : "";
    }

    async #isCheap() {
        const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
        if (local || this.info.nbytes < SMALL) {
            return true;
        }
        const { models } = await this.#makers.stored().catch(() => ({ models: [] }));
        const stored = models.find(({ id }) => id === this.info.id)?.bytes ?? 0;
        return stored >= this.info.nbytes / 2;
    }
}

/** How far each stage of loading is, and which of them is shown: those that run at the same time take no turns. */
export class LoadingStages {
    /** @type {Map<string, {speed: Speed, told: Loading}>} */ #stages = new Map();
    /** @type {Loading | null} */ #newest = null;

    /** @param {LoadProgress} told @param {number} seconds A clock. */
    add(told, seconds) {
        if (told.stage === "plan") {
            this.#stages.clear(); // from the beginning, perhaps with less context
        }
        const speed = this.#stages.get(told.stage)?.speed ?? new Speed();
        speed.add(seconds, told.done);
        this.#newest = { ...told, speed: speed.value };
        this.#stages.set(told.stage, { speed, told: this.#newest });
    }

    get shown() {
        const running = STAGES.map((stage) => this.#stages.get(stage)?.told);
        return running.find((told) => told && told.done < told.total) ?? this.#newest;
    }
}
