/** Commands on their way. Learns from the time that they take how much to submit before waiting. */

import { throwProblem, watched } from "./gpu_errors.js";

/**
 * @import { Answers } from "./answers.js"
 * @import { Problem } from "./gpu_errors.js"
 */

/** @typedef {{pipeline: GPUComputePipeline, bindGroup: GPUBindGroup, groups: number, cost: number}} Launch */
/** @typedef {(encoder: GPUCommandEncoder) => void} Encode */

/**
 * How long one wait for the device may take: what a browser's own drawing, and an abort, may have to wait for.
 */
const WAIT_MS = 50;

/** Multiplications that any device does in about that time. */
const FIRST_BUDGET = 1 << 26;

export class Submissions {
    #device;
    #answers;
    #budget = FIRST_BUDGET;
    #cost = 0;
    #since = 0;
    /** @type {Promise<Problem | null>[]} */ #problems = [];

    /** @param {GPUDevice} device @param {Answers} answers */
    constructor(device, answers) {
        this.#device = device;
        this.#answers = answers;
    }

    /** Whether so much may be submitted at once. @param {number} cost */
    fits(cost) {
        return cost <= this.#budget;
    }

    /**
     * Submits launches, and `finish` after the last of them, without ever keeping the device busy for long. What is
     * submitted last is not waited for.
     * @param {Launch[]} launches
     * @param {() => void} check Called before each submission; may throw.
     * @param {Encode} finish
     */
    async replay(launches, check, finish) {
        let first = 0;
        while (first < launches.length) {
            const last = this.#end(launches, first);
            if (last === first) {
                await this.settle();
                continue;
            }
            check();
            const now = launches.slice(first, last);
            this.submit(costOf(now), (encoder) => {
                encode(encoder, now);
                if (last === launches.length) {
                    finish(encoder);
                }
            });
            first = last;
        }
    }

    /** @param {number} cost @param {Encode} encodeTo */
    submit(cost, encodeTo) {
        if (this.#cost === 0) {
            this.#since = performance.now();
        }
        this.#cost += cost;
        this.#problems.push(this.send(encodeTo));
    }

    /**
     * Submits what somebody else waits for.
     * @param {Encode} encodeTo
     * @returns {Promise<Problem | null>} What the device has against it.
     */
    send(encodeTo) {
        const [, problem] = watched(this.#device, () => {
            const encoder = this.#device.createCommandEncoder();
            encodeTo(encoder);
            this.#device.queue.submit([encoder.finish()]);
        });
        return problem;
    }

    /** Waits until the device is done. Throws what it had against the commands. */
    async settle() {
        await this.#answers.workDone();
        if (this.#cost > 0) {
            this.#learn(performance.now() - this.#since);
            this.#cost = 0;
        }
        const problems = await Promise.all(this.#problems.splice(0));
        throwProblem(
            "can't run",
            problems.find((problem) => problem !== null),
        );
    }

    /**
     * The end of the launches from `first` on that may be submitted now; `first` itself if it is time to settle.
     */
    #end(/** @type {Launch[]} */ launches, /** @type {number} */ first) {
        let cost = this.#cost;
        let last = first;
        while (last < launches.length && (cost === 0 || cost + launches[last].cost <= this.#budget)) {
            cost += launches[last].cost;
            last++;
        }
        return last;
    }

    /** By and by: launches of the same cost do not all take the same time. @param {number} ms */
    #learn(ms) {
        // At least so much: a part of a short wait is the way to the device and back.
        const fits = (this.#cost * WAIT_MS) / Math.max(ms, 0.1);
        if (ms > WAIT_MS) {
            this.#budget = Math.max(fits, this.#budget / 2);
        } else {
            this.#budget = Math.max(this.#budget, Math.min(fits, 2 * this.#budget));
        }
    }
}

/** @param {Launch[]} launches */
export function costOf(launches) {
    return launches.reduce((sum, { cost }) => sum + cost, 0);
}

/** @param {GPUCommandEncoder} encoder @param {Launch[]} launches */
export function encode(encoder, launches) {
    const pass = encoder.beginComputePass();
    for (const { pipeline, bindGroup, groups } of launches) {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, bindGroup);
        pass.dispatchWorkgroups(groups);
    }
    pass.end();
}
