/**
 * The page's worker: it loads the model to the card and makes replies, so that the page never waits for either.
 *
 * @import { ErrorKind } from "./errors.js"
 * @import { Loaded } from "./loading.js"
 * @import { CardFacts, LoadProgress, ModelEvent, Sampling } from "./model.js"
 *
 * @typedef {{kind: ErrorKind, message: string}} Told An error.
 * @typedef {{type: "load", id: number, api: {base: string, key: string | null}, ctxSize: number | null}
 *     | {type: "generate", id: number, key: string | null, tokens: number[], sampling: Sampling}
 *     | {type: "renew", id: number, key: string | null}
 *     | {type: "cancel", id: number} | {type: "destroy-device"}} Request Of the page. `cancel` ends what has that id;
 *     `renew` makes sure that the server has the plan; `key`: the visitor's, which may have changed.
 * @typedef {{type: "progress", id: number, progress: LoadProgress} | {type: "loaded", id: number, facts: CardFacts}
 *     | {type: "events", id: number, events: ModelEvent[]} | {type: "ended", id: number}
 *     | {type: "failed", id: number, error: Told | null} | {type: "lost", error: Told}} Answer
 *     `failed`: null for what was cancelled. `lost`: while nothing ran.
 */

import { Api } from "./api.js";
import { Batch } from "./batch.js";
import { ModelError } from "./errors.js";
import { load } from "./loading.js";

/** @type {Loaded | null} */
let loaded = null;
/** @type {Map<number, AbortController>} */
const running = new Map();

/** @param {Answer} answer */
function post(answer) {
    globalThis.postMessage(answer);
}

/** @param {Extract<Request, {type: "load"}>} request @param {AbortSignal} signal */
async function loadModel({ id, api, ctxSize }, signal) {
    const batch = new Batch((/** @type {LoadProgress[]} */ all) => {
        // Of each stage the newest says all.
        const newest = new Map(all.map((progress) => [progress.stage, progress]));
        newest.forEach((progress) => post({ type: "progress", id, progress }));
    });
    try {
        loaded = await load({
            api: new Api(api.base, api.key),
            ctxSize,
            onProgress: (progress) => batch.add(progress),
            signal,
        });
    } finally {
        batch.flush();
    }
    loaded.device.lost.then(({ message, reason }) => {
        if (running.size === 0) {
            const said = `the graphics card was lost: ${message || reason}`;
            post({ type: "lost", error: { kind: "lost", message: said } });
        }
        loaded = null;
    });
    post({ type: "loaded", id, facts: loaded.facts });
}

/** @param {string | null} key */
function present(key) {
    if (loaded === null) {
        throw new ModelError("lost", "the model is not on the graphics card: load it again");
    }
    loaded.api.useKey(key);
    return loaded;
}

/** @param {Extract<Request, {type: "renew"}>} request @param {AbortSignal} signal */
async function renew({ id, key }, signal) {
    await present(key).renew(signal);
    post({ type: "ended", id });
}

/** @param {Extract<Request, {type: "generate"}>} request @param {AbortSignal} signal */
async function generate({ id, key, tokens, sampling }, signal) {
    const { engine } = present(key);
    const batch = new Batch((/** @type {ModelEvent[]} */ events) => post({ type: "events", id, events }));
    try {
        for await (const event of engine.generate(tokens, sampling, signal)) {
            batch.add(event);
        }
    } finally {
        batch.flush();
    }
    post({ type: "ended", id });
}

/** @param {number} id @param {(signal: AbortSignal) => Promise<void>} work */
async function run(id, work) {
    const abort = new AbortController();
    running.set(id, abort);
    try {
        await work(abort.signal);
    } catch (error) {
        post({ type: "failed", id, error: abort.signal.aborted ? null : told(error) });
    } finally {
        running.delete(id);
    }
}

/** @param {unknown} error @returns {Told} */
function told(error) {
    if (error instanceof ModelError) {
        return { kind: error.kind, message: error.message };
    }
    return { kind: "page", message: error instanceof Error ? error.message : String(error) };
}

globalThis.addEventListener("message", (/** @type {MessageEvent<Request>} */ { data }) => {
    if (data.type === "load") {
        run(data.id, (signal) => loadModel(data, signal));
    } else if (data.type === "generate") {
        run(data.id, (signal) => generate(data, signal));
    } else if (data.type === "renew") {
        run(data.id, (signal) => renew(data, signal));
    } else if (data.type === "cancel") {
        running.get(data.id)?.abort();
    } else {
        loaded?.device.destroy();
    }
});
