/**
 * The browser's engine: ids of a prompt in, events out. It computes on slot 0 and keeps what the slot holds.
 */

import { ModelError } from "./errors.js";
import { PlanReplayError } from "./gpu_errors.js";
import { RunAhead } from "./run_ahead.js";
import { drawsOf } from "./sampling.js";
import { IncrementalDecoder } from "./vocabulary.js";

/**
 * @import { KvCache } from "./cache.js"
 * @import { ModelEvent, Reason, Sampling, Stats } from "./model.js"
 * @import { Plan } from "./plan.js"
 * @import { Runtime } from "./runtime.js"
 * @import { ScheduleSource } from "./schedule_source.js"
 * @import { Vocabulary } from "./vocabulary.js"
 */

export class Engine {
    #runtime;
    #plan;
    #schedules;
    #cache;
    #vocabulary;
    #endIds;
    #steps;
    #busy = false;

    /**
     * @param {object} parts
     * @param {Runtime} parts.runtime With its weights.
     * @param {Plan} parts.plan
     * @param {ScheduleSource} parts.schedules
     * @param {KvCache} parts.cache
     * @param {Vocabulary} parts.vocabulary
     * @param {Iterable<number>} parts.endIds Tokens that end a reply.
     * @param {boolean} parts.software Whether the card is software, whose cores are also the page's.
     */
    constructor({ runtime, plan, schedules, cache, vocabulary, endIds, software }) {
        this.#runtime = runtime;
        this.#plan = plan;
        this.#schedules = schedules;
        this.#cache = cache;
        this.#vocabulary = vocabulary;
        this.#endIds = new Set(endIds);
        // With more in flight a stop waits longer, and a card that is kept busy by two gains nothing.
        this.#steps = runtime.stepsAhead(software ? 1 : 2);
    }

    /**
     * Goes on from a prompt. What the cache holds of it is not read again.
     * @param {number[]} tokens
     * @param {Sampling} sampling
     * @param {AbortSignal} signal Ends it with reason `cancelled`.
     * @returns {AsyncGenerator<ModelEvent, void, undefined>}
     */
    async *generate(tokens, sampling, signal) {
        if (this.#busy) {
            throw new ModelError("request", "a reply is already being made");
        }
        this.#check(tokens);
        const draws = drawsOf(sampling);
        const most = sampling.maxTokens ?? Infinity;
        /** @type {Stats} */
        const stats = {
            promptTokens: tokens.length,
            cachedTokens: 0,
            generatedTokens: 0,
            prefillSeconds: 0,
            decodeSeconds: 0,
            contextUsed: 0,
            contextSize: this.#cache.ctxSize,
            seed: draws.seed,
        };
        const decoder = new IncrementalDecoder(this.#vocabulary);
        this.#busy = true;
        let reason = /** @type {Reason} */ ("cancelled");
        let emptied = false;
        try {
            if (most > 0) {
                reason = yield* this.#run(tokens, draws, most, stats, decoder, signal);
            } else {
                reason = "length";
            }
        } catch (error) {
            emptied = error instanceof ModelError && error.kind === "numbers";
            if (!signal.aborted || !(error instanceof DOMException)) {
                throw error instanceof PlanReplayError ? modelError(error) : error;
            }
        } finally {
            // What ran ahead of the last token was for nothing.
            await this.#steps.drop();
            this.#busy = false;
            this.#tidy(emptied);
        }
        const rest = decoder.flush();
        if (rest !== "") {
            yield { type: "text", text: rest, token: null };
        }
        yield { type: "end", reason, stats: { ...stats, contextUsed: this.#cache.length } };
    }

    /**
     * @param {number[]} tokens
     * @param {import("./sampling.js").Draws} draws
     * @param {number} most
     * @param {Stats} stats Is kept up to date.
     * @param {IncrementalDecoder} decoder
     * @param {AbortSignal} signal
     * @returns {AsyncGenerator<ModelEvent, Reason, undefined>}
     */
    async *#run(tokens, draws, most, stats, decoder, signal) {
        let since = performance.now();
        // At least the prompt's last token is read, for its logits.
        stats.cachedTokens = this.#truncate(Math.min(this.#cache.commonPrefix(tokens), tokens.length - 1));
        const cached = stats.cachedTokens;
        const total = tokens.length - cached;
        yield { type: "progress", stage: "prefill", done: 0, total, cached };
        const steps = this.#stepsOf(stats.cachedTokens, tokens.length);
        const widths = this.#schedules.widthsOf(steps, draws.part);
        await unlessAborted(this.#schedules.fetched(widths), signal);
        // What is compiled while the device computes; a failure is told when it is needed.
        this.#schedules.ready(widths.slice(-2)).catch(() => {});
        this.#schedules.token(tokens.length + 1).catch(() => {});
        for (const [i, [start, rows]] of steps.slice(0, -1).entries()) {
            this.#schedules.ready([widths[i + 1]]).catch(() => {});
            await unlessAborted(this.#schedules.ready([widths[i]]), signal);
            await this.#read(tokens.slice(start, start + rows), signal);
            stats.prefillSeconds = (performance.now() - since) / 1000;
            yield { type: "progress", stage: "prefill", done: start + rows - cached, total, cached };
        }
        await unlessAborted(this.#schedules.ready(widths.slice(-3)), signal);
        const last = tokens.slice(this.#cache.length);
        const ahead = await RunAhead.begin(this.#steps, this.#cache, draws, last, this.#plan.rows);
        for (;;) {
            signal.throwIfAborted();
            if (stats.generatedTokens > 0) {
                const end = Math.min(ahead.end + this.#steps.most, this.#cache.ctxSize);
                await unlessAborted(this.#schedules.token(end), signal);
            }
            const room =
                this.#cache.ctxSize - this.#cache.length - (stats.generatedTokens > 0 ? 0 : last.length - 1);
            const token = await ahead.next(Math.min(room, most - stats.generatedTokens), signal);
            const spent = (performance.now() - since) / 1000;
            if (stats.generatedTokens > 0) {
                stats.decodeSeconds = spent;
            } else {
                stats.prefillSeconds = spent;
                since = performance.now();
            }
            if (token === null) {
                throw new ModelError(
                    "numbers",
                    "the graphics card computed no numbers: its driver may be at fault",
                );
            }
            if (this.#endIds.has(token)) {
                return "stop";
            }
            stats.generatedTokens++;
            yield { type: "text", text: decoder.push(token), token };
            if (stats.generatedTokens >= most) {
                return "length";
            }
            if (this.#cache.length >= this.#cache.ctxSize) {
                return "context";
            }
        }
    }

    /**
     * The steps that read a prompt's positions from `start` to `end`.
     * @param {number} start
     * @param {number} end
     */
    #stepsOf(start, end) {
        /** @type {[number, number][]} */
        const steps = [];
        for (let at = start; at < end; at += this.#plan.rows) {
            steps.push([at, Math.min(this.#plan.rows, end - at)]);
        }
        return steps;
    }

    /** One step of the prompt that is not its last. @param {number[]} tokens @param {AbortSignal} signal */
    async #read(tokens, signal) {
        const start = this.#cache.length;
        /** @type {Record<string, number[]>} */
        const inputs = {
            token: tokens,
            pos: tokens.map((_, i) => start + i),
            slot: tokens.map(() => 0),
            out_rows: [],
        };
        const known = Object.entries(inputs).filter(([name]) => name in this.#plan.inputs);
        this.#cache.begin(tokens.length);
        await this.#runtime.step(Object.fromEntries(known), { signal });
        this.#cache.commit(tokens);
    }

    /** What steps have written beyond what the cache holds is forgotten; of a lost device everything is. */
    #tidy(/** @type {boolean} */ emptied) {
        try {
            this.#truncate(emptied ? 0 : this.#cache.length);
            if (emptied) {
                this.#runtime.wipe();
            }
        } catch {
            this.#cache.truncate(0);
        }
    }

    /** @param {number} length */
    #truncate(length) {
        const kept = this.#cache.truncate(length);
        this.#runtime.truncate(0, kept);
        return kept;
    }

    /** @param {number[]} tokens */
    #check(tokens) {
        const { ctxSize } = this.#cache;
        if (tokens.length === 0) {
            throw new ModelError("request", "the prompt is empty: there is nothing to go on from");
        }
        if (tokens.length > ctxSize) {
            const said = `the prompt has ${tokens.length} tokens, the context ${ctxSize}`;
            throw new ModelError("context", `${said}: begin a new chat, or shorten this one`);
        }
    }
}

/**
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal} signal
 * @returns {Promise<T>}
 */
function unlessAborted(promise, signal) {
    return new Promise((resolve, reject) => {
        const abort = () => reject(signal.reason);
        signal.addEventListener("abort", abort);
        promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
        if (signal.aborted) {
            abort();
        }
    });
}

/** What a user is told of an error of the runtime. @param {PlanReplayError} error @returns {ModelError} */
export function modelError(error) {
    const kinds = /** @type {const} */ ({
        plan: "shader",
        shader: "shader",
        lost: "lost",
        "out-of-memory": "out-of-memory",
    });
    return new ModelError(kinds[error.kind], error.message);
}
