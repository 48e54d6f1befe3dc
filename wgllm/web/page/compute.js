/** What computes replies: on this device or on the server, how far it is loaded, and what went wrong. */

import { Speed } from "./format.js";
import { faultOf } from "./troubles.js";

/**
 * @import { Api } from "../api.js"
 * @import { Facts, LoadProgress, Model, ModelInfo } from "../model.js"
 * @import { Fault } from "./troubles.js"
 *
 * @typedef {LoadProgress & {speed: number | null}} Loading
 * @typedef {"start" | "asking" | "loading" | "ready" | "failed"} Phase
 */

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
     * @param {{gpu: (api: Api) => Model, server: (api: Api) => Model, obstacle: () => Promise<Error | null>}} makers
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
            this.model = this.#makers[where](this.#api);
            this.model.onLost = (error) => this.fail(error);
            if (ask && where === "gpu" && !(await this.#isCheap())) {
                this.#become("asking");
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

    async load() {
        const model = this.model;
        if (model === null) {
            await this.choose(this.where);
            return;
        }
        const { signal } = this.#stop;
        this.#become("loading");
        let speed = new Speed();
        try {
            const facts = await model.load({
                signal,
                onProgress: (progress) => {
                    if (signal.aborted) {
                        return;
                    }
                    if (progress.stage !== this.progress?.stage) {
                        speed = new Speed();
                    }
                    speed.add(performance.now() / 1000, progress.done);
                    this.progress = { ...progress, speed: speed.value };
                    this.onChange();
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

    /** @param {Api} api With another key. */
    useApi(api) {
        this.#api = api;
    }

    #drop() {
        this.#stop.abort();
        this.#stop = new AbortController();
        const model = this.model;
        this.model = null;
        this.facts = null;
        if (model !== null) {
            model.onLost = null;
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

    async #isCheap() {
        const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
        if (local || this.info.nbytes < SMALL) {
            return true;
        }
        const stored = (await this.model?.storedBytes?.().catch(() => 0)) ?? 0;
        return stored >= this.info.nbytes / 2;
    }
}
