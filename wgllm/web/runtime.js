/**
 * Replays a plan on a WebGPU device. `wgllm/plan.py` says what a plan holds: it was made for a model elsewhere, and
 * nothing here knows models. Of a step's inputs two have a meaning here: `pos` (positions are below the width's
 * cells, and cells hold them) and `slot` (whose cells).
 */

import { StepsAhead } from "./ahead.js";
import { Answers } from "./answers.js";
import { CellPositions } from "./cells.js";
import { mapped, PlanReplayError } from "./gpu_errors.js";
import { PieceReader, piecesOf, placesOf } from "./pieces.js";
import { PlanBuffers } from "./plan_buffers.js";
import { checkLimits, packedSize, requiredLimits, VERSION } from "./plan.js";
import { Schedules } from "./schedules.js";
import { countRows, padded, placeOutputs, runsOf, splitOutputs } from "./step_rows.js";
import { Submissions } from "./submissions.js";

/**
 * @import { Numbers } from "./cells.js"
 * @import { Source } from "./pieces.js"
 * @import { Plan, Schedules as Added, Width } from "./plan.js"
 * @import { Places, Run } from "./step_rows.js"
 */

/** A plan on a device: its buffers, and what was compiled for it. Does one thing at a time. */
export class Runtime {
    #device;
    #plan;
    #answers;
    #buffers;
    #schedules;
    #submissions;
    /** @type {CellPositions[]} */ #positions = [];
    #filled = false;
    #busy = false;
    #destroyed = false;
    /** @type {GPUDeviceLostInfo | null} */ #lost = null;

    /** Use `Runtime.create`. @param {GPUDevice} device @param {Plan} plan */
    constructor(device, plan) {
        this.#device = device;
        this.#plan = plan;
        this.#answers = new Answers(device);
        this.#buffers = new PlanBuffers(device, plan, this.#answers);
        this.#schedules = new Schedules(device, plan, this.#buffers.all);
        this.#submissions = new Submissions(device, this.#answers);
        device.lost.then((info) => {
            this.#lost = info;
        });
        this.addSchedules({ schedules: plan.schedules ?? [], kernels: plan.kernels ?? [] });
    }

    /** What to give to `requestDevice` for a plan. */
    static requiredLimits = requiredLimits;

    /**
     * Makes the buffers, and compiles the shaders: all of them, or with `lazy` each when a step first needs it.
     * @param {GPUDevice} device
     * @param {Plan} plan
     * @param {{lazy?: boolean, onCompile?: (done: number, total: number) => void}} options
     * @returns {Promise<Runtime>}
     */
    static async create(device, plan, { lazy = false, onCompile = () => {} } = {}) {
        if (plan.version !== VERSION) {
            throw new PlanReplayError(`this is no plan of version ${VERSION}`);
        }
        checkLimits(device, plan);
        const runtime = new Runtime(device, plan);
        try {
            await runtime.#alone(async () => {
                await runtime.#answers.measure();
                await runtime.#allocate();
                if (!lazy) {
                    await runtime.compile(plan.schedules ?? [], onCompile);
                }
            });
        } catch (error) {
            runtime.destroy();
            throw error;
        }
        return runtime;
    }

    /** Schedules that steps may take from now on. @param {Added} added */
    addSchedules(added) {
        this.#schedules.add(added);
    }

    /** Whether there is a schedule of just that width. @param {Width} width */
    has(width) {
        return this.#schedules.has(width);
    }

    /**
     * Compiles the shaders of schedules that are there.
     * @param {Width[]} widths
     * @param {(done: number, total: number) => void} onCompile Told of shaders.
     */
    compile(widths, onCompile = () => {}) {
        return this.#explained(() => this.#schedules.compile(widths, onCompile));
    }

    /**
     * Compiles and binds what a schedule needs, for which a step would have to wait; steps may run meanwhile.
     * @param {Width} width That of a schedule that is there.
     */
    async prepare(width) {
        await this.#explained(() => this.#schedules.launches(this.#schedules.of(width)));
    }

    /**
     * Writes the weights.
     * @param {Source} source The packed file, in pieces of any size.
     * @param {(bytes: number, total: number) => void} onProgress
     * @returns {Promise<void>}
     */
    fill(source, onProgress = () => {}) {
        return this.#alone(async () => {
            this.#filled = false;
            const total = packedSize(this.#plan);
            const reader = new PieceReader(source);
            let bytes = 0;
            try {
                for (const piece of piecesOf(this.#plan.fills)) {
                    const data = await reader.read(piece[2]);
                    bytes += data.length;
                    if (data.length < piece[2]) {
                        throw new PlanReplayError(`the weights end after ${bytes} of ${total} bytes`);
                    }
                    await this.#buffers.upload(piece, data);
                    onProgress(bytes, total);
                }
                if (await reader.hasMore()) {
                    throw new PlanReplayError(`the weights go on after ${total} bytes`);
                }
            } finally {
                await reader.close();
            }
            this.#filled = true;
        });
    }

    /**
     * Writes a part of the weights; several may be written at the same time. `endWeights` comes after all of them.
     * @param {number} at Its place in the packed file, a multiple of 4, as is its size.
     * @param {Uint8Array<ArrayBuffer>} data
     */
    async writeWeights(at, data) {
        if (at < 0 || at + data.length > packedSize(this.#plan) || (at | data.length) % 4 !== 0) {
            throw new PlanReplayError(`the weights have no place for ${data.length} bytes at ${at}`);
        }
        await this.#explained(async () => {
            for (const [from, region] of placesOf(this.#plan.fills, at, data.length)) {
                await this.#buffers.upload(region, data.subarray(from, from + region[2]));
            }
        });
    }

    /** All weights were written. */
    endWeights() {
        this.#filled = true;
    }

    /**
     * Computes one step. One that fails or is aborted leaves the cells of its rows empty.
     * @param {Record<string, Numbers>} inputs The numbers of all rows, for each input.
     * @param {{signal?: AbortSignal}} options
     * @returns {Promise<Record<string, Float32Array | Int32Array>>} The numbers of all rows, for each output.
     */
    step(inputs, { signal } = {}) {
        return this.#alone(async () => {
            this.#checkFilled();
            signal?.throwIfAborted();
            const counts = countRows(this.#plan, inputs);
            const runs = runsOf(this.#plan, this.#schedules, counts, inputs.pos ?? []);
            // What can be wrong with a plan shows before the state changes.
            const launches = await Promise.all(runs.map((run) => this.#schedules.launches(run.schedule)));
            const outputs = placeOutputs(this.#plan, counts);
            const readback = await this.#buffers.reserve(outputs.size);
            for (const positions of this.#positions) {
                positions.hold(inputs.pos, inputs.slot);
            }
            const check = () => {
                signal?.throwIfAborted();
                this.#checkUsable();
            };
            try {
                for (const [i, run] of runs.entries()) {
                    this.#writeInputs(run, inputs);
                    await this.#submissions.replay(launches[i], check, (encoder) => {
                        this.#copyOutputs(encoder, run, outputs, readback);
                    });
                }
                return splitOutputs(await this.#read(readback, outputs.size), outputs, counts);
            } catch (error) {
                await this.#submissions.settle().catch(() => {}); // the first error says more than those after it
                for (const positions of this.#positions) {
                    positions.forget(inputs.pos, inputs.slot);
                }
                throw error;
            }
        });
    }

    /**
     * Steps of slot 0 that choose their own tokens.
     * @param {number} most That may be in flight.
     * @returns {StepsAhead}
     */
    stepsAhead(most) {
        if (!this.#plan.sampling) {
            throw new PlanReplayError("the plan chooses no tokens");
        }
        return new StepsAhead(
            {
                device: this.#device,
                plan: this.#plan,
                sampling: this.#plan.sampling,
                buffers: this.#buffers.all,
                submissions: this.#submissions,
                answers: this.#answers,
                launches: (part, rows, cells) =>
                    this.#schedules.launches(this.#schedules.narrowest(part, rows, cells)),
                rowsOf: (part, rows, cells) => this.#schedules.narrowest(part, rows, cells).rows,
                hold: (pos, slot) => this.#positions.forEach((positions) => positions.hold(pos, slot)),
                write: (region, data) => this.#buffers.write(region, data),
                check: () => {
                    this.#checkFilled();
                    this.#checkUsable();
                },
                explained: (work) => this.#explained(work),
            },
            most,
        );
    }

    /**
     * Makes a slot forget its positions from `length` on.
     * @param {number} slot
     * @param {number} length
     */
    truncate(slot, length) {
        this.#checkIdle();
        for (const positions of this.#positions) {
            positions.truncate(slot, length);
        }
    }

    /** Empties all slots, and zeroes keys and values: a NaN spreads even from where nobody looks. */
    wipe() {
        this.#checkIdle();
        const states = Object.values(this.#plan.states);
        for (const positions of this.#positions) {
            positions.clear();
        }
        this.#submissions.submit(0, (encoder) => {
            for (const {
                region: [buffer, offset, size],
                kv_type,
            } of states) {
                if (kv_type !== "i32") {
                    encoder.clearBuffer(this.#buffers.all[buffer], offset, size);
                }
            }
        });
    }

    /**
     * What a state holds: positions, or the words of keys or values as they lie on the device.
     * @param {string} name
     * @returns {Promise<Int32Array | Uint32Array>}
     */
    readState(name) {
        return this.#alone(async () => {
            const state = this.#plan.states[name];
            if (!state) {
                throw new PlanReplayError(`the plan has no state ${name}`);
            }
            const [buffer, offset, size] = state.region;
            const readback = await this.#buffers.reserve(size);
            this.#submissions.submit(0, (encoder) => {
                encoder.copyBufferToBuffer(this.#buffers.all[buffer], offset, readback, 0, size);
            });
            const bytes = await this.#read(readback, size);
            if (state.kv_type !== "i32") {
                return new Uint32Array(bytes);
            }
            const [slots, cells] = state.shape;
            return new Int32Array(bytes, 0, slots * cells); // regions are rounded up
        });
    }

    /** Frees the buffers. The device stays. */
    destroy() {
        this.#destroyed = true;
        this.#buffers.destroy();
    }

    /**
     * Runs `work` if nothing else runs.
     * @template T
     * @param {() => Promise<T>} work
     * @returns {Promise<T>}
     */
    async #alone(work) {
        this.#checkIdle();
        this.#busy = true;
        try {
            return await this.#explained(work);
        } finally {
            this.#busy = false;
        }
    }

    /**
     * Runs `work`; says so if the device was lost meanwhile.
     * @template T
     * @param {() => Promise<T>} work
     * @returns {Promise<T>}
     */
    async #explained(work) {
        try {
            return await work();
        } catch (error) {
            await new Promise((resolve) => void setTimeout(resolve)); // what fails with a device fails before it
            this.#checkUsable();
            throw error;
        }
    }

    #checkIdle() {
        if (this.#busy) {
            throw new PlanReplayError("the runtime is still busy");
        }
        this.#checkUsable();
    }

    #checkUsable() {
        if (this.#lost) {
            throw new PlanReplayError(
                `the GPU was lost: ${this.#lost.message || this.#lost.reason}`,
                "",
                "lost",
            );
        }
        if (this.#destroyed) {
            throw new PlanReplayError("the runtime was destroyed");
        }
    }

    #checkFilled() {
        if (!this.#filled && this.#plan.fills.length > 0) {
            throw new PlanReplayError("the weights are not there yet");
        }
    }

    async #allocate() {
        await this.#buffers.allocate();
        for (const state of Object.values(this.#plan.states)) {
            if (state.kv_type === "i32") {
                this.#positions.push(
                    new CellPositions(state, (region, data) => this.#buffers.write(region, data)),
                );
            }
        }
    }

    /** @param {Run} run @param {Record<string, Numbers>} inputs */
    #writeInputs({ part, first, last, schedule }, inputs) {
        for (const [name, value] of Object.entries(this.#plan.inputs)) {
            if (value.part === part) {
                this.#buffers.write(value.region, padded(value, inputs[name], first, last, schedule.rows));
            }
        }
    }

    /**
     * @param {GPUCommandEncoder} encoder
     * @param {Run} run
     * @param {Places} outputs
     * @param {GPUBuffer} readback
     */
    #copyOutputs(encoder, { part, first, last }, { places }, readback) {
        for (const { value, at } of places) {
            if (value.part === part) {
                const [buffer, offset] = value.region;
                const [to, size] = [at + first * value.row, (last - first) * value.row];
                encoder.copyBufferToBuffer(this.#buffers.all[buffer], offset, readback, to, size);
            }
        }
    }

    /** The first `size` bytes of the readback buffer, when all that was submitted is done. */
    async #read(/** @type {GPUBuffer} */ readback, /** @type {number} */ size) {
        try {
            // Together, because each is a way to the device and back.
            const ready = this.#answers.to(mapped(this.#device, readback, size));
            await Promise.all([ready, this.#submissions.settle()]);
            return readback.getMappedRange(0, size).slice(0);
        } finally {
            readback.unmap();
        }
    }
}
