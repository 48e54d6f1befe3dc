/** The model on the visitor's own graphics card, in a worker. */

import { obstacle } from "./device.js";
import { ModelError } from "./errors.js";
import { Store } from "./store.js";
import { WorkerLink } from "./worker_link.js";

/**
 * @import { Api } from "./api.js"
 * @import { CardFacts, LoadProgress, Message, Model, ModelEvent, Sampling } from "./model.js"
 * @import { Stored } from "./store.js"
 */

/** @implements {Model} */
export class LocalModel {
    kind = /** @type {const} */ ("gpu");
    /** Called when the card is lost while nothing runs. @type {((error: ModelError) => void) | null} */
    onLost = null;
    #api;
    #asked;
    #ctxSize = 0;
    /** Of what is loaded. */
    #plan = "";
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

    /** The weights in the browser's storage, of all models of this server. @returns {Promise<Stored>} */
    static async stored() {
        return (await (await Store.open())?.stored()) ?? { models: [], bytes: 0 };
    }

    /** Deletes the weights of a model, or of all, from the browser's storage. @param {string | null} [id] */
    static async deleteStored(id = null) {
        const store = await Store.open();
        await (id === null ? store?.clear() : store?.remove(id));
    }

    /**
     * May be called again, after an error or not: everything is loaded anew. An abort is thrown as it is.
     * @param {{onProgress?: (progress: LoadProgress) => void, signal?: AbortSignal}} [options]
     * @returns {Promise<CardFacts>}
     */
    async load({ onProgress = () => {}, signal } = {}) {
        signal?.throwIfAborted();
        this.close();
        let fetched = false;
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
                    const { stage, done, cached } = answer.progress;
                    fetched ||= stage === "weights" && done > cached;
                    onProgress(answer.progress);
                } else if (answer.type === "loaded") {
                    this.#ctxSize = answer.facts.ctxSize;
                    this.#plan = answer.facts.plan;
                    if (fetched) {
                        // So that the browser does not clear them by itself. Some ask the visitor: not at each visit.
                        globalThis.navigator?.storage?.persist?.().catch(() => {});
                    }
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
            const link = this.#link; // a card that is lost meanwhile closes it, and tells why
            await before;
            if (link === null) {
                throw new ModelError("request", "the model is not loaded");
            }
            const tokens = await this.#tokensOf(messages, link, signal);
            if (tokens === null) {
                yield this.#cancelled();
                return;
            }
            for await (const answer of link.call(
                { type: "generate", key: this.#api.settings.key, tokens, sampling },
                signal,
            )) {
                if (answer.type === "events") {
                    yield* answer.events;
                }
            }
        } finally {
            done();
        }
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
     * Null if it was cancelled. Of another model than the loaded one there are none.
     * @param {Message[]} messages
     * @param {WorkerLink} link
     * @param {AbortSignal} [signal]
     * @returns {Promise<number[] | null>}
     */
    async #tokensOf(messages, link, signal) {
        const json = {
            plan: this.#plan,
            messages: messages.map(({ role, content, tokenIds }) =>
                tokenIds === undefined ? { role, content } : { role, content, token_ids: tokenIds },
            ),
        };
        const ask = async () => (await this.#api.json("api/chat_tokens", { json, signal })).tokens;
        try {
            signal?.throwIfAborted();
            try {
                return await ask();
            } catch (error) {
                if (!(error instanceof ModelError) || error.code !== "other_model") {
                    throw error;
                }
                await link.run({ type: "renew", key: this.#api.settings.key }, signal);
                return await ask();
            }
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
