/**
 * Steps of slot 0 that follow on each other on the device: it chooses each token itself, and goes on with it. The next
 * step is submitted before the last token is known, so that the device never waits for it. What is kept here, the
 * positions of cells, does not depend on the tokens. The counterpart of `wgllm/backends/ahead.py`.
 */

import { mapped, throwProblem } from "./gpu_errors.js";
import { padded } from "./step_rows.js";
import { costOf, encode } from "./submissions.js";

/**
 * @import { Answers } from "./answers.js"
 * @import { Numbers } from "./cells.js"
 * @import { Problem } from "./gpu_errors.js"
 * @import { Part, Plan, Region, Sampling } from "./plan.js"
 * @import { Launch, Submissions } from "./submissions.js"
 *
 * @typedef {object} Host What this needs of a runtime.
 * @property {GPUDevice} device
 * @property {Plan} plan
 * @property {Sampling} sampling
 * @property {GPUBuffer[]} buffers
 * @property {Submissions} submissions
 * @property {Answers} answers
 * @property {(part: Part, rows: number, cells: number) => Promise<Launch[]>} launches
 * @property {(part: Part, rows: number, cells: number) => number} rowsOf Rows of the schedule that is launched.
 * @property {(pos: Numbers, slot: Numbers) => void} hold
 * @property {(region: Region, data: ArrayBufferView<ArrayBuffer>) => void} write
 * @property {() => void} check Throws where nothing can run.
 * @property {<T>(work: () => Promise<T>) => Promise<T>} explained
 *
 * @typedef {{readback: GPUBuffer, ready: Promise<void>, problem: Promise<Problem | null>, cut: boolean}} InFlight
 */

const TAKEN_BYTES = 8;

export class StepsAhead {
    #host;
    /** @type {GPUBuffer[]} */ #free;
    /** @type {InFlight[]} */ #waiting = [];
    /** @type {"greedy" | "draw"} */ #part = "greedy";
    /** @type {number[]} What the next step reads; empty: what the device has chosen. */ #tokens = [];
    #pos = 0;
    /** Whether the device's own inputs are not those of the next step. */
    #stale = false;
    /** Whether steps take so long that each is to be cut into submissions that are waited for. */
    careful = false;

    /** @param {Host} host @param {number} most That may be in flight. */
    constructor(host, most) {
        this.#host = host;
        this.most = most;
        const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
        this.#free = Array.from({ length: most }, () =>
            host.device.createBuffer({ size: TAKEN_BYTES, usage }),
        );
    }

    get inFlight() {
        return this.#waiting.length;
    }

    /**
     * The next step reads `tokens` from `pos` on, and the one after it what that chose.
     * @param {"greedy" | "draw"} part
     * @param {Uint32Array<ArrayBuffer>} words The request's, see `sampling.js`.
     * @param {number[]} tokens
     * @param {number} pos
     */
    async begin(part, words, tokens, pos) {
        await this.drop();
        this.#part = part;
        this.#tokens = tokens;
        this.#pos = pos;
        this.#host.write(this.#host.sampling.request, words);
    }

    /**
     * One more step, while fewer than `most` are in flight. One that fails leaves cells of its rows behind, which are
     * to be truncated.
     * @param {AbortSignal} [signal] Looked at between the submissions of a long step.
     */
    async submit(signal) {
        await this.#host.explained(async () => {
            const { submissions, check, sampling, buffers } = this.#host;
            check();
            const rows = Math.max(1, this.#tokens.length);
            const launches = await this.#launches(rows, this.#pos + rows);
            this.#writeInputs(rows);
            const pos = Array.from({ length: rows }, (_, i) => this.#pos + i);
            this.#host.hold(pos, new Int32Array(rows));
            const readback = /** @type {GPUBuffer} */ (this.#free.shift());
            /** @param {GPUCommandEncoder} encoder */
            const copy = (encoder) => {
                const [buffer, offset] = sampling.taken;
                encoder.copyBufferToBuffer(buffers[buffer], offset, readback, 0, TAKEN_BYTES);
            };
            const cut = this.careful || !submissions.fits(costOf(launches));
            /** @type {Promise<Problem | null>} */
            let problem = Promise.resolve(null);
            try {
                if (cut) {
                    const between = () => {
                        signal?.throwIfAborted();
                        check();
                    };
                    await submissions.replay(launches, between, copy);
                } else {
                    problem = submissions.send((encoder) => {
                        encode(encoder, launches);
                        copy(encoder);
                    });
                }
            } catch (error) {
                this.#free.push(readback);
                await submissions.settle().catch(() => {}); // the first error says more than those after it
                throw error;
            }
            const ready = mapped(this.#host.device, readback, TAKEN_BYTES);
            ready.catch(() => {}); // told when the token is taken
            this.#waiting.push({ readback, ready, problem, cut });
            this.#pos += rows;
            this.#tokens = [];
            this.#stale = rows > 1;
        });
    }

    /** The token that the oldest step chose, or null if its logits held a NaN or an infinity. */
    async take() {
        return this.#host.explained(async () => {
            const { readback, ready, problem, cut } = this.#waiting[0];
            try {
                const { answers, submissions } = this.#host;
                await Promise.all([answers.to(ready), cut ? submissions.settle() : null]);
                throwProblem("can't run", await problem);
                const [token, bad] = new Int32Array(readback.getMappedRange());
                return bad ? null : token;
            } finally {
                this.#waiting.shift();
                readback.unmap();
                this.#free.push(readback);
            }
        });
    }

    /** Waits for what is in flight and forgets what it chose; what it wrote to the state is still there. */
    async drop() {
        while (this.#waiting.length > 0) {
            await this.take().catch(() => {}); // who began it has heard, or does not care
        }
    }

    /** Of the body, the tail and the choice. @param {number} rows @param {number} cells */
    async #launches(rows, cells) {
        const { launches } = this.#host;
        const parts = [launches("body", rows, cells), launches("tail", 1, 0), launches(this.#part, 1, 0)];
        return (await Promise.all(parts)).flat();
    }

    /** What the device does not have by itself after the last step. @param {number} rows */
    #writeInputs(rows) {
        const given = this.#tokens.length > 0;
        if (!given && !this.#stale) {
            return;
        }
        const { plan, rowsOf, write } = this.#host;
        /** @type {Record<string, number[]>} */
        const inputs = {
            pos: Array.from({ length: rows }, (_, i) => this.#pos + i),
            slot: Array.from({ length: rows }, () => 0),
            out_rows: [rows - 1],
        };
        if (given) {
            inputs.token = this.#tokens;
        }
        const most = rowsOf("body", rows, this.#pos + rows);
        for (const [name, numbers] of Object.entries(inputs)) {
            const value = plan.inputs[name];
            if (value !== undefined) {
                write(
                    value.region,
                    padded(value, numbers, 0, numbers.length, value.part === "body" ? most : 1),
                );
            }
        }
    }
}
