/**
 * A model that says what a test tells it to, in the place of local_model.js. `window.fake` has the script:
 * obstacle, loadError, generateError {after, kind, message}: errors; steps: how loading goes; reply: what it says
 * (a text, or a list of texts, one per reply); pause: milliseconds between tokens; hold, holdPrefill, holdAfter: where
 * it waits, in loading, before a reply or after so many tokens of it, as long as the script has that; stored: bytes by model, and rest:
 * those of none.
 */

import { ModelError } from "./errors.js";

const script = () => window.fake ?? {};
const wait = (ms, signal) =>
    new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, ms);
        signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
    });

let replies = 0;
let made = 0;

export class LocalModel {
    kind = "gpu";
    onLost = null;
    #closing = new AbortController();

    constructor(api, { ctxSize = null } = {}) {
        this.api = api;
        this.ctxSize = ctxSize;
        this.number = ++made;
        window.fakeModel = this;
    }

    static async obstacle() {
        const { obstacle } = script();
        return obstacle ? new ModelError(obstacle.kind, obstacle.message) : null;
    }

    async load({ onProgress = () => {}, signal } = {}) {
        const { steps = [] } = script();
        for (const step of steps) {
            onProgress(step);
            await wait(step.ms ?? 0, signal);
        }
        while (script().hold) {
            await wait(10, signal);
        }
        const { loadError } = script();
        if (loadError) {
            throw new ModelError(loadError.kind, loadError.message);
        }
        return {
            where: "NVIDIA GeForce RTX 4070 (WebGPU)",
            adapter: {
                vendor: "nvidia",
                architecture: "ada-lovelace",
                description: "NVIDIA GeForce RTX 4070",
                software: false,
            },
            limits: {
                maxBufferSize: 268435456,
                maxStorageBufferBindingSize: 134217728,
                maxStorageBuffersPerShaderStage: 8,
            },
            features: ["shader-f16", "subgroups"],
            ctxSize: this.ctxSize ?? script().ctxSize ?? 8192,
            weightsBytes: 271e6,
            gpuBytes: 412e6,
            storeProblem: script().storeProblem ?? null,
        };
    }

    async *generate(messages, sampling, { signal: given } = {}) {
        const closed = this.#closing.signal;
        const signal = given ? AbortSignal.any([given, closed]) : closed;
        (window.asked ??= []).push({ messages: structuredClone(messages), sampling: { ...sampling } });
        const { reply, pause = 0, generateError, promptTokens = 20 } = script();
        const text = Array.isArray(reply)
            ? reply[replies++ % reply.length]
            : (reply ?? `You said: ${messages.at(-1).content}`);
        const pieces = text.match(/\s*[^\s]{1,4}|\s+/gu) ?? [];
        let made = 0;
        const end = (reason) => ({
            type: "end",
            reason,
            stats: {
                promptTokens,
                cachedTokens: 0,
                generatedTokens: made,
                prefillSeconds: 0.1,
                decodeSeconds: (made - 1) / 40,
                contextUsed: promptTokens + made,
                contextSize: this.ctxSize ?? script().ctxSize ?? 8192,
                seed: sampling.seed,
            },
        });
        try {
            yield { type: "progress", stage: "prefill", done: 0, total: promptTokens };
            while (script().holdPrefill) {
                await wait(10, signal);
            }
            for (const piece of pieces) {
                if (generateError && made === generateError.after) {
                    throw new ModelError(generateError.kind, generateError.message);
                }
                while (script().holdAfter === made) {
                    await wait(10, signal);
                }
                if (pause > 0) {
                    await wait(pause, signal);
                }
                signal?.throwIfAborted();
                made++;
                yield { type: "text", text: piece, token: 100 + made };
            }
            if (generateError && made <= generateError.after) {
                throw new ModelError(generateError.kind, generateError.message);
            }
            yield end(made === sampling.maxTokens ? "length" : "stop");
        } catch (error) {
            if (!given?.aborted) {
                throw error;
            }
            yield end("cancelled");
        }
    }

    /** `stored`: bytes by model. */
    static async stored() {
        const models = Object.entries(script().stored ?? { smollm2: 271e6 }).map(([id, bytes]) => ({
            id,
            bytes,
        }));
        return { models, bytes: models.reduce((sum, { bytes }) => sum + bytes, 0) + (script().rest ?? 0) };
    }

    static async deleteStored(id = null) {
        const { [id]: _, ...others } = script().stored ?? { smollm2: 271e6 };
        window.fake = { ...script(), stored: id === null ? {} : others, rest: 0 };
    }

    /** A reply that is being made fails, as the worker's does. */
    close() {
        this.#closing.abort(new ModelError("request", "the model was closed"));
    }
}
