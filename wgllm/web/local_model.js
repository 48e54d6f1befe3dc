/** The model on the visitor's own graphics card, in a worker. */

import { obstacle } from "./device.js";
import { ModelError } from "./errors.js";
import { Store } from "./store.js";
import { WorkerLink } from "./worker_link.js";

/**
 * @import { Api } from "./api.js"
 * @import { CardFacts, LoadProgress, Message, Model, ModelEvent, Sampling } from "./model.js"
 */

/** @implements {Model} */
export class LocalModel {
    kind = /** @type {const} */ ("gpu");
    /** Called when the card is lost while nothing runs. @type {((error: ModelError) => void) | null} */
    onLost = null;
    #api;
    #asked;
    #ctxSize = 0;
    /** @type {WorkerLink | null} */ #link = null;
    /** When the reply that is being made has ended. @type {Promise<void>} */
    #turn = Promise.resolve();

    /**
     * @param {Api} api
     * @param {{ctxSize?: number | null}} [options] `ctxSize`: null for what the server thinks fit.
     */
    constructor(api, { ctxSize = null } = {}) {
        this.#api = api;
        this.#asked = ctxSize;
    }

    /** Why models can't run on the visitor's card; null if they may. @returns {Promise<ModelError | null>} */
    static obstacle() {
        return obstacle();
    }

    /**
     * May be called again, after an error or not: everything is loaded anew. An abort is thrown as it is.
     * @param {{onProgress?: (progress: LoadProgress) => void, signal?: AbortSignal}} [options]
     * @returns {Promise<CardFacts>}
     */
    async load({ onProgress = () => {}, signal } = {}) {
        signal?.throwIfAborted();
        this.close();
        navigator.storage?.persist?.().catch(() => {}); // so that the browser does not clear it by itself
        const link = new WorkerLink((error) => this.onLost?.(error));
        this.#link = link;
        const stop = () => link.close(new ModelError("request", "loading was stopped"));
        signal?.addEventListener("abort", stop, { once: true });
        try {
            for await (const answer of link.call({
                type: "load",
                api: this.#api.settings,
                ctxSize: this.#asked,
            })) {
                if (answer.type === "progress") {
                    onProgress(answer.progress);
                } else if (answer.type === "loaded") {
                    this.#ctxSize = answer.facts.ctxSize;
                    return answer.facts;
                }
            }
            throw new ModelError("request", "loading was stopped");
        } catch (error) {
            this.close();
            signal?.throwIfAborted();
            throw error;
        } finally {
            signal?.removeEventListener("abort", stop);
        }
    }

    /**
     * The reply to messages. One is made at a time; another waits for it.
     * @param {Message[]} messages
     * @param {Sampling} sampling
     * @param {{signal?: AbortSignal}} [options]
     * @returns {AsyncGenerator<ModelEvent, void, undefined>}
     */
    async *generate(messages, sampling, { signal } = {}) {
        const before = this.#turn;
        let done = () => {};
        this.#turn = new Promise((resolve) => {
            done = resolve;
        });
        try {
            await before;
            if (this.#link === null) {
                throw new ModelError("request", "the model is not loaded");
            }
            const tokens = await this.#tokensOf(messages, signal);
            if (tokens === null) {
                yield this.#cancelled();
                return;
            }
            for await (const answer of this.#link.call({ type: "generate", tokens, sampling }, signal)) {
                if (answer.type === "events") {
                    yield* answer.events;
                }
            }
        } finally {
            done();
        }
    }

    /** Bytes of weights in the browser's storage, of all models of this server. */
    async storedBytes() {
        return (await (await Store.open())?.bytes()) ?? 0;
    }

    /** Deletes those. */
    async deleteStored() {
        await (await Store.open())?.clear();
    }

    /** Gives the card back. `load` may follow. */
    close() {
        this.#link?.close(new ModelError("request", "the model was closed"));
        this.#link = null;
    }

    /** Loses the card, as a driver might. For tests. */
    destroyDevice() {
        this.#link?.destroyDevice();
    }

    /**
     * Null if it was cancelled.
     * @param {Message[]} messages
     * @param {AbortSignal} [signal]
     * @returns {Promise<number[] | null>}
     */
    async #tokensOf(messages, signal) {
        const json = {
            messages: messages.map(({ role, content, tokenIds }) =>
                tokenIds === undefined ? { role, content } : { role, content, token_ids: tokenIds },
            ),
        };
        try {
            signal?.throwIfAborted();
            return (await this.#api.json("api/chat_tokens", { json, signal })).tokens;
        } catch (error) {
            if (signal?.aborted) {
                return null;
            }
            throw error;
        }
    }

    /** The end of a reply that has not begun. @returns {ModelEvent} */
    #cancelled() {
        const none = {
            promptTokens: 0,
            cachedTokens: 0,
            generatedTokens: 0,
            prefillSeconds: 0,
            decodeSeconds: 0,
        };
        const stats = { ...none, contextUsed: 0, contextSize: this.#ctxSize, seed: 0 };
        return { type: "end", reason: "cancelled", stats };
    }
}
