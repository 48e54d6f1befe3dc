/** A reply as it is generated: its text, its tokens, its figures, and how it ends. Knows nothing of the screen. */

import { Speed } from "./format.js";
import { faultOf } from "./troubles.js";

/**
 * @import { Message as Turn, Model, ModelEvent, Sampling } from "../model.js"
 * @import { Message } from "./tree.js"
 *
 * @typedef {{
 *     stage: string, done: number, total: number, label: string, tokens: number, rate: number | null,
 *     firstSeconds: number | null, contextUsed: number | null,
 * }} Live What is known while it runs; `stage` is empty once there is text.
 */

/** How much of a reply may be lost when a tab is killed. */
const SAVE_SECONDS = 1;

export class Reply {
    /** @type {Live} */ live = {
        stage: "load",
        done: 0,
        total: 0,
        label: "",
        tokens: 0,
        rate: null,
        firstSeconds: null,
        contextUsed: null,
    };
    /** @type {unknown} What was thrown. */ error = null;
    message;
    #onUpdate;
    #save;
    #stop = new AbortController();
    #speed = new Speed(2);
    #started = 0;
    #saved = 0;
    #now;

    /**
     * @param {Message} message
     * @param {{onUpdate: () => void, save: () => void, now?: () => number}} options `now`: a clock in seconds.
     */
    constructor(message, { onUpdate, save, now = () => performance.now() / 1000 }) {
        this.message = message;
        this.#onUpdate = onUpdate;
        this.#save = save;
        this.#now = now;
    }

    stop() {
        this.#stop.abort(new DOMException("stopped", "AbortError"));
    }

    /**
     * Until the reply has ended, however it ends.
     * @param {(signal: AbortSignal) => Promise<Model>} ready
     * @param {Turn[]} messages
     * @param {Sampling} sampling
     */
    async run(ready, messages, sampling) {
        const { signal } = this.#stop;
        const message = this.message;
        this.#started = this.#now();
        this.#saved = this.#started;
        try {
            const model = await ready(signal);
            this.live.stage = "prefill";
            this.#onUpdate();
            for await (const event of model.generate(messages, sampling, { signal })) {
                this.#take(event);
                this.#onUpdate();
                this.#saveSometimes();
            }
            // A model that just stops has not said why.
            message.state =
                message.state === "partial" ? (signal.aborted ? "stopped" : "complete") : message.state;
        } catch (error) {
            this.error = error;
            const stopped = signal.aborted || (error instanceof Error && error.name === "AbortError"); // or the loading was
            message.state = stopped ? "stopped" : "error";
            if (message.state === "error") {
                message.error = faultOf(error);
            }
        }
        this.live.stage = "";
        message.version++;
        this.#save();
        this.#onUpdate();
    }

    /** @param {ModelEvent} event */
    #take(event) {
        const { live, message } = this;
        if (event.type === "progress") {
            Object.assign(live, {
                stage: event.stage,
                done: event.done,
                total: event.total,
                label: event.label ?? "",
            });
            if (event.stage === "prefill") {
                live.contextUsed = (event.cached ?? 0) + event.total;
            }
        } else if (event.type === "text") {
            const now = this.#now();
            if (live.firstSeconds === null) {
                live.firstSeconds = now - this.#started;
                live.stage = "";
            }
            message.content += event.text;
            if (event.token !== null) {
                (message.tokenIds ??= []).push(event.token);
            }
            live.tokens++;
            this.#speed.add(now, live.tokens);
            live.rate = this.#speed.value;
        } else {
            message.reason = event.reason;
            message.state = event.reason === "cancelled" ? "stopped" : "complete";
            const { seed, ...stats } = event.stats;
            message.stats = stats;
            if (live.firstSeconds !== null) {
                message.stats.firstSeconds = live.firstSeconds;
            }
            // JSON has no room for large numbers.
            message.stats.seed = typeof seed === "bigint" ? String(seed) : seed;
        }
    }

    #saveSometimes() {
        const now = this.#now();
        if (now - this.#saved >= SAVE_SECONDS) {
            this.#saved = now;
            this.message.touched = Date.now();
            this.message.version++;
            this.#save();
        }
    }
}

/** What it does before there is text, in words. @param {Live} live */
export function waitingFor({ stage, done, total, label }) {
    const share = total > 0 && done < total ? ` ${Math.floor((100 * done) / total)} %` : "";
    switch (stage) {
        case "load":
            return "Waiting for the model to be loaded…";
        case "download":
            return `The server fetches ${label || "the model"}…${share}`;
        case "weights":
            return `The server loads the model…${share}`;
        case "queue":
            return total > 0
                ? `Waiting for the server: ${done + 1}. in the queue…`
                : "Waiting for the server…";
        case "prefill":
            return `Reading the conversation…${share}`;
        default:
            return "…";
    }
}
