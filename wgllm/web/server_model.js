/** Replies that the server computes, streamed in OpenAI's form. The same interface as LocalModel's. */

import { lines } from "./api.js";
import { ModelError } from "./errors.js";

/**
 * @import { Api } from "./api.js"
 * @import { Message, Model, ModelEvent, ModelInfo, Reason, Sampling, ServerFacts, Stats } from "./model.js"
 */

/** Where the server has not said what it computes with. */
const UNKNOWN = "the server";

/** @implements {Model} */
export class ServerModel {
    /** @type {"server"} */ kind = "server";
    /** Never called: what fails there fails in a request. @type {((error: ModelError) => void) | null} */ onLost =
        null;
    /** Called where it has become known what computes. @type {((facts: ServerFacts) => void) | null} */ onFacts =
        null;
    #api;
    /** @type {ServerFacts} */ #facts = { where: UNKNOWN, ctxSize: 0 };
    /** The model's. @type {string | null} */ #id = null;

    /** @param {Api} api */
    constructor(api) {
        this.#api = api;
    }

    /**
     * Asks whether the server is there; it loads the model with the first reply.
     * @param {{signal?: AbortSignal}} [options]
     * @returns {Promise<ServerFacts>}
     */
    async load({ signal } = {}) {
        /** @type {ModelInfo} */
        const told = await this.#api.json("api/model", { signal });
        this.#id = told.id;
        this.#facts = { where: await this.#askWhere(signal), ctxSize: told.ctx_size };
        return this.#facts;
    }

    /** Known once its engine has the model. @param {AbortSignal} [signal] @returns {Promise<string>} */
    async #askWhere(signal) {
        const { engine } = await this.#api.json("health", { signal });
        return typeof engine?.where === "string" && engine.where ? engine.where : UNKNOWN;
    }

    async #tellWhere() {
        const where = await this.#askWhere().catch(() => UNKNOWN);
        if (where !== UNKNOWN) {
            this.#facts = { ...this.#facts, where };
            this.onFacts?.(this.#facts);
        }
    }

    /**
     * @param {Message[]} messages
     * @param {Sampling} sampling
     * @param {{signal?: AbortSignal}} [options]
     * @returns {AsyncGenerator<ModelEvent>}
     */
    async *generate(messages, sampling, { signal } = {}) {
        const reading = new Reading(this.#facts.ctxSize, sampling.seed, this.#id);
        try {
            const json = requestOf(messages, sampling);
            const response = await this.#api.fetch("v1/chat/completions", { json, signal });
            for await (const line of lines(response, signal)) {
                yield* reading.eventsOf(line);
                if (reading.done) {
                    break;
                }
            }
            if (reading.reason === null) {
                throw new ModelError("network", "the connection to the server broke");
            }
            if (this.#facts.where === UNKNOWN) {
                void this.#tellWhere();
            }
            yield reading.end(reading.reason);
        } catch (error) {
            if (!signal?.aborted) {
                throw error;
            }
            yield reading.end("cancelled");
        }
    }

    close() {}
}

/** @param {Message[]} messages @param {Sampling} sampling */
export function requestOf(messages, sampling) {
    return {
        messages: messages.map(({ role, content, tokenIds }) => ({
            role,
            content,
            ...(tokenIds ? { token_ids: tokenIds } : {}),
        })),
        temperature: sampling.temperature,
        top_k: sampling.topK,
        top_p: sampling.topP,
        min_p: sampling.minP,
        ...(sampling.seed === null ? {} : { seed: sampling.seed }),
        ...(sampling.maxTokens === null ? {} : { max_tokens: sampling.maxTokens }),
        stream: true,
        stream_options: { include_usage: true },
        progress: true,
        cache_prompt: true, // a chat goes on from its own cache, also where the server would begin anew to be exact
    };
}

/** What the lines of a stream say, and what of it the end will tell. */
export class Reading {
    done = false;
    /** @type {Reason | null} */ reason = null;
    /** @type {Stats} */ #stats;
    #started = performance.now();
    #id;

    /**
     * @param {number} contextSize
     * @param {number | null} seed
     * @param {string | null} [id] The model's that is to answer; null: any.
     */
    constructor(contextSize, seed, id = null) {
        this.#id = id;
        this.#stats = {
            promptTokens: 0,
            cachedTokens: 0,
            generatedTokens: 0,
            prefillSeconds: 0,
            decodeSeconds: 0,
            contextUsed: 0,
            contextSize,
            seed,
        };
    }

    /** @param {string} line Of server-sent events. @returns {Generator<ModelEvent>} */
    *eventsOf(line) {
        if (!line.startsWith("data:")) {
            return;
        }
        const data = line.slice(5).trim();
        if (data === "[DONE]") {
            this.done = true;
            return;
        }
        /** @type {any} */
        let chunk;
        try {
            chunk = JSON.parse(data);
        } catch {
            throw new ModelError("server", "the server sent something that is no JSON");
        }
        if (chunk.error) {
            const said = typeof chunk.error.message === "string" ? chunk.error.message : "the server failed";
            const context = chunk.error.code === "context_length_exceeded";
            throw new ModelError(context ? "context" : "server", said);
        }
        if (this.#id !== null && typeof chunk.model === "string" && chunk.model !== this.#id) {
            throw new ModelError("other-model", `the server has another model now: ${chunk.model}`);
        }
        if (chunk.object === "wgllm.progress") {
            const { stage, done, total, label } = chunk;
            yield { type: "progress", stage, done: done ?? 0, total: total ?? 0, label };
            return;
        }
        this.#readFigures(chunk);
        const choice = chunk.choices?.[0];
        yield* this.#textOf(choice?.delta?.content ?? "", chunk.token_ids ?? choice?.token_ids ?? []);
        this.reason = reasonOf(choice?.finish_reason) ?? this.reason;
    }

    /** @param {string} text @param {number[]} tokens @returns {Generator<ModelEvent>} */
    *#textOf(text, tokens) {
        if (text === "" && tokens.length === 0) {
            return;
        }
        if (this.#stats.generatedTokens === 0) {
            this.#stats.prefillSeconds = (performance.now() - this.#started) / 1000;
        }
        this.#stats.generatedTokens += Math.max(1, tokens.length);
        // A text of several tokens belongs to the last of them.
        for (const token of tokens.slice(0, -1)) {
            yield { type: "text", text: "", token };
        }
        yield { type: "text", text, token: tokens[tokens.length - 1] ?? null };
    }

    /** @param {any} chunk */
    #readFigures({ usage, timings, context_used: used, context_size: size }) {
        const stats = this.#stats;
        if (usage) {
            stats.promptTokens = usage.prompt_tokens ?? stats.promptTokens;
            stats.generatedTokens = usage.completion_tokens ?? stats.generatedTokens;
        }
        if (timings) {
            stats.cachedTokens = timings.cache_n ?? 0;
            stats.prefillSeconds = (timings.prompt_ms ?? 0) / 1000;
            stats.decodeSeconds = (timings.predicted_ms ?? 0) / 1000;
        }
        stats.contextUsed = used ?? stats.contextUsed;
        stats.contextSize = size ?? stats.contextSize;
    }

    /** @param {Reason} reason @returns {ModelEvent} */
    end(reason) {
        const stats = this.#stats;
        if (stats.decodeSeconds === 0 && stats.generatedTokens > 0) {
            stats.decodeSeconds = (performance.now() - this.#started) / 1000 - stats.prefillSeconds;
        }
        return { type: "end", reason, stats };
    }
}

/** @param {unknown} finish OpenAI's reason. @returns {Reason | null} */
function reasonOf(finish) {
    if (typeof finish !== "string") {
        return null;
    }
    return finish === "length" || finish === "context" ? finish : "stop";
}
