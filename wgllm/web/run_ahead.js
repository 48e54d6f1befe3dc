/** Generation in which the device chooses the tokens: the counterpart of `wgllm/run_ahead.py`. */

/**
 * @import { KvCache } from "./cache.js"
 * @import { Draws } from "./sampling.js"
 *
 * @typedef {object} Steps What this needs of `StepsAhead`.
 * @property {number} most
 * @property {number} inFlight
 * @property {boolean} careful
 * @property {(part: "greedy" | "draw", words: Uint32Array<ArrayBuffer>, tokens: number[], pos: number) => Promise<void>} begin
 * @property {(signal?: AbortSignal) => Promise<void>} submit
 * @property {() => Promise<number | null>} take
 * @property {() => Promise<void>} drop
 */

/** A cancel waits for what is in flight: of steps that take longer than this, only one is. */
const SHORT_STEP_MS = 80;

/** How many long ones in a row mean that steps are long: a single one may have compiled a shader. */
const PATIENCE = 2;

/** The steps of one request. `end` must be called; the slot may hold positions too many then. */
export class RunAhead {
    #steps;
    #cache;
    /** @type {number[]} What the oldest step in flight, or the next one, reads. */
    #input;
    #depth = 1; // until it is known that a step is short
    #longSteps = 0;
    #most;

    /**
     * Use `RunAhead.begin`.
     * @param {Steps} steps
     * @param {KvCache} cache
     * @param {number[]} tokens
     * @param {number} rows
     */
    constructor(steps, cache, tokens, rows) {
        this.#steps = steps;
        this.#cache = cache;
        this.#input = tokens;
        // A ring keeps a window and the largest step: further ahead it would lose what a row after a stop must see.
        this.#most = Math.min(steps.most, rows + 1);
    }

    /**
     * The first step reads `tokens`, the end of a prompt, after what the cache holds.
     * @param {Steps} steps
     * @param {KvCache} cache
     * @param {Draws} draws
     * @param {number[]} tokens At most `rows`.
     * @param {number} rows The largest step.
     */
    static async begin(steps, cache, draws, tokens, rows) {
        steps.careful = false;
        await steps.begin(draws.part, draws.words(0), tokens, cache.length);
        return new RunAhead(steps, cache, tokens, rows);
    }

    /** The position after all that is on its way. */
    get end() {
        return this.#cache.length + this.#rowsInFlight;
    }

    get #rowsInFlight() {
        return this.#steps.inFlight === 0 ? 0 : this.#input.length + this.#steps.inFlight - 1;
    }

    /**
     * The next token, or null for logits that are no numbers.
     * @param {number} most How many more steps there may be, that one included; some may be on their way afterwards.
     * @param {AbortSignal} signal
     */
    async next(most, signal) {
        const steps = this.#steps;
        const started = performance.now();
        while (steps.inFlight < Math.min(this.#depth, most)) {
            signal.throwIfAborted();
            const rows = steps.inFlight === 0 ? this.#input.length : 1;
            this.#cache.begin(this.#rowsInFlight + rows);
            await steps.submit(signal);
        }
        const token = await steps.take();
        if (performance.now() - started < SHORT_STEP_MS) {
            this.#longSteps = 0;
            this.#depth = this.#most;
        } else {
            this.#longSteps++;
            this.#depth = 1;
        }
        steps.careful ||= this.#longSteps >= PATIENCE;
        if (token !== null) {
            this.#cache.commit(this.#input);
            this.#input = [token];
        }
        return token;
    }
}
