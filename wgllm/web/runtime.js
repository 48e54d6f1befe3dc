/**
 * Replays a plan on a WebGPU device. `wgllm/plan.py` says what a plan holds: it was made for a model elsewhere, and
 * nothing here knows models. Of a step's inputs two have a meaning here: `pos` (positions are below the width's
 * cells, and cells hold them) and `slot` (whose cells).
 *
 * @typedef {[buffer: number, offset: number, size: number]} Region
 * @typedef {{region: Region, row: number, part: "body" | "tail", dtype: "f32" | "i32", pad: number}} Value
 * @typedef {{region: Region, kv_type: string, shape: number[]}} State
 * @typedef {[file: string, first: number, count: number]} Lines
 * @typedef {{name: string, entry: string, text: string, origin: Lines[]}} Kernel
 * @typedef {[kernel: number, bindings: Region[], groups: number, node: number, cost: number]} Dispatch
 * @typedef {{part: "body" | "tail", rows: number, cells: number, dispatches: Dispatch[]}} Schedule
 * @typedef {{op: string, outputs: string[], layer: number | null, part: string}} PlannedNode
 * @typedef {{
 *     version: number, limits: Object<string, number>, buffers: {name: string, size: number, role: string}[],
 *     fills: {region: Region}[], nodes: PlannedNode[], inputs: Object<string, Value>, outputs: Object<string, Value>,
 *     states: Object<string, State>, rows: number, out_rows: number, cells: number, kernels: Kernel[],
 *     schedules: Schedule[],
 * }} Plan
 * @typedef {{pipeline: GPUComputePipeline, bindGroup: GPUBindGroup, groups: number, cost: number}} Launch
 * @typedef {{part: "body" | "tail", first: number, last: number, schedule: Schedule}} Run Rows of a step, or of those
 *     that get outputs, and what computes them.
 */

const VERSION = 2;

/** Bytes of weights that are on their way to the device at a time. */
const PIECE = 4 << 20;

/** How long one wait for the device may take: what a browser's own drawing, and an abort, may have to wait for. */
const WAIT_MS = 50;

/** Multiplications that any device does in about that time. */
const FIRST_BUDGET = 1 << 26;

const ARRAYS = { f32: Float32Array, i32: Int32Array };

/** The plan's limits under WebGPU's names. */
const LIMITS = {
    maxBufferSize: "buffer",
    maxStorageBufferBindingSize: "binding",
    maxStorageBuffersPerShaderStage: "bindings",
    maxComputeWorkgroupStorageSize: "workgroup_memory",
    maxComputeInvocationsPerWorkgroup: "invocations",
    maxComputeWorkgroupSizeX: "invocations",
    maxComputeWorkgroupsPerDimension: "workgroups",
};

/** What can't be replayed, and why, in one line. */
export class PlanReplayError extends Error {
    name = "PlanReplayError";

    /**
     * @param {string} message
     * @param {string} listing For shaders: numbered lines of the file around the mistake.
     */
    constructor(message, listing = "") {
        super(message.replace(/\s+/g, " ").trim());
        this.listing = listing;
    }
}

/** A plan on a device: its buffers, and what was compiled for it. Does one thing at a time. */
export class Runtime {
    /** @type {GPUDevice} */ #device;
    /** @type {Plan} */ #plan;
    /** @type {GPUBuffer[]} */ #buffers = [];
    /** @type {GPUBuffer | null} */ #readback = null;
    /** @type {CellPositions[]} */ #positions = [];
    /** @type {Map<string, Promise<GPUShaderModule>>} By text. */ #modules = new Map();
    /** @type {Map<number, Promise<GPUComputePipeline>>} By kernel. */ #pipelines = new Map();
    /** @type {Map<Schedule, Promise<Launch[]>>} */ #launches = new Map();
    /** @type {Submissions} */ #submissions;
    #filled = false;
    #busy = false;
    #destroyed = false;
    /** @type {GPUDeviceLostInfo | null} */ #lost = null;

    /** Use `Runtime.create`. */
    constructor(device, plan) {
        this.#device = device;
        this.#plan = plan;
        this.#submissions = new Submissions(device);
        device.lost.then((info) => {
            this.#lost = info;
        });
    }

    /**
     * What to give to `requestDevice` for a plan.
     * @param {Plan} plan
     * @returns {Record<string, number>}
     */
    static requiredLimits(plan) {
        return Object.fromEntries(Object.entries(LIMITS).map(([name, ours]) => [name, plan.limits[ours]]));
    }

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
                await runtime.#allocate();
                if (!lazy) {
                    await runtime.#compileAll(onCompile);
                }
            });
        } catch (error) {
            runtime.destroy();
            throw error;
        }
        return runtime;
    }

    /**
     * Writes the weights.
     * @param {ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>} source The packed file, in pieces of any size.
     * @param {(bytes: number, total: number) => void} onProgress
     */
    fill(source, onProgress = () => {}) {
        return this.#alone(async () => {
            this.#filled = false;
            const total = this.#plan.fills.reduce((sum, { region }) => sum + region[2], 0);
            const reader = new PieceReader(source);
            let bytes = 0;
            try {
                for (const piece of piecesOf(this.#plan.fills)) {
                    const data = await reader.read(piece[2]);
                    bytes += data.length;
                    if (data.length < piece[2]) {
                        throw new PlanReplayError(`the weights end after ${bytes} of ${total} bytes`);
                    }
                    await this.#upload(piece, data);
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
     * Computes one step. One that fails or is aborted leaves the cells of its rows empty.
     * @param {Object<string, number[] | Int32Array | Float32Array>} inputs The numbers of all rows, for each input.
     * @param {{signal?: AbortSignal}} options
     * @returns {Promise<Object<string, Float32Array | Int32Array>>} The numbers of all rows, for each output.
     */
    step(inputs, { signal } = {}) {
        return this.#alone(async () => {
            if (!this.#filled && this.#plan.fills.length > 0) {
                throw new PlanReplayError("the weights are not there yet");
            }
            signal?.throwIfAborted();
            const counts = this.#countRows(inputs);
            const runs = this.#runs(counts, inputs.pos ?? []);
            // What can be wrong with a plan shows before the state changes.
            const launches = await Promise.all(runs.map((run) => this.#prepare(run.schedule)));
            const outputs = this.#placeOutputs(counts);
            await this.#reserve(outputs.size);
            for (const positions of this.#positions) {
                positions.hold(inputs.pos, inputs.slot);
            }
            try {
                for (const [i, run] of runs.entries()) {
                    this.#writeInputs(run, inputs);
                    const finish = (encoder) => this.#copyOutputs(encoder, run, outputs);
                    await this.#replay(launches[i], signal, finish);
                }
                return this.#splitOutputs(await this.#read(outputs.size), outputs, counts);
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
            await this.#reserve(size);
            this.#submissions.submit(0, (encoder) => {
                encoder.copyBufferToBuffer(this.#buffers[buffer], offset, this.#readback, 0, size);
            });
            const bytes = await this.#read(size);
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
        this.#buffers.forEach((buffer) => buffer.destroy());
        this.#readback?.destroy();
    }

    /** Runs `work` if nothing else runs; says so if the device was lost meanwhile. */
    async #alone(work) {
        this.#checkIdle();
        this.#busy = true;
        try {
            return await work();
        } catch (error) {
            await new Promise((resolve) => setTimeout(resolve)); // what fails with a device fails before it is lost
            this.#checkUsable();
            throw error;
        } finally {
            this.#busy = false;
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
            throw new PlanReplayError(`the GPU was lost: ${this.#lost.message || this.#lost.reason}`);
        }
        if (this.#destroyed) {
            throw new PlanReplayError("the runtime was destroyed");
        }
    }

    async #allocate() {
        const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
        await Promise.all(
            this.#plan.buffers.map(({ name, size }, i) =>
                checked(this.#device, `buffer ${name} of ${size} bytes`, () => {
                    this.#buffers[i] = this.#device.createBuffer({ label: name, size, usage });
                }),
            ),
        );
        for (const state of Object.values(this.#plan.states)) {
            if (state.kv_type === "i32") {
                this.#positions.push(new CellPositions(state, (region, data) => this.#write(region, data)));
            }
        }
    }

    async #compileAll(onCompile) {
        const dispatches = this.#plan.schedules.flatMap((schedule) => schedule.dispatches);
        const kernels = new Set(dispatches.map(([kernel]) => kernel));
        let done = 0;
        await Promise.all(
            [...kernels].map(async (kernel) => {
                await this.#pipeline(kernel);
                onCompile(++done, kernels.size);
            }),
        );
    }

    /** @param {number} index @returns {Promise<GPUComputePipeline>} */
    #pipeline(index) {
        return remembered(this.#pipelines, index, async () => {
            const kernel = this.#plan.kernels[index];
            const module = await remembered(this.#modules, kernel.text, () => compileModule(this.#device, kernel));
            const compute = { module, entryPoint: kernel.entry };
            const descriptor = { label: kernel.entry, layout: "auto", compute };
            try {
                return await this.#device.createComputePipelineAsync(descriptor);
            } catch (error) {
                throw new PlanReplayError(`shader ${kernel.name}: can't build ${kernel.entry}: ${error.message}`);
            }
        });
    }

    /** @param {Schedule} schedule @returns {Promise<Launch[]>} */
    #prepare(schedule) {
        return remembered(this.#launches, schedule, async () => {
            const { part, rows, dispatches } = schedule;
            const pipelines = await Promise.all(dispatches.map(([kernel]) => this.#pipeline(kernel)));
            return checked(this.#device, `${part} of ${rows} rows`, () =>
                dispatches.map((dispatch, i) => this.#bind(dispatch, pipelines[i])),
            );
        });
    }

    /** @param {Dispatch} dispatch @param {GPUComputePipeline} pipeline @returns {Launch} */
    #bind([, bindings, groups, node, cost], pipeline) {
        const { op, layer } = this.#plan.nodes[node];
        const bindGroup = this.#device.createBindGroup({
            label: layer === null ? op : `${op} of layer ${layer}`,
            layout: pipeline.getBindGroupLayout(0),
            entries: bindings.map(([buffer, offset, size], binding) => ({
                binding,
                resource: { buffer: this.#buffers[buffer], offset, size },
            })),
        });
        return { pipeline, bindGroup, groups, cost: Math.max(1, cost) };
    }

    /** How many rows of the body and of the tail a step has; checks that all inputs agree. */
    #countRows(inputs) {
        const counts = {};
        for (const [name, { row, part }] of Object.entries(this.#plan.inputs)) {
            const length = inputs[name]?.length;
            if (length === undefined) {
                throw new PlanReplayError(`input ${name} is missing`);
            }
            const width = row / 4;
            counts[part] ??= Math.floor(length / width);
            if (length !== counts[part] * width) {
                const due = `${counts[part]} rows of ${width}`;
                throw new PlanReplayError(`input ${name} has ${length} numbers, not ${due}`);
            }
        }
        const unknown = Object.keys(inputs).find((name) => !(name in this.#plan.inputs));
        if (unknown !== undefined) {
            throw new PlanReplayError(`the plan has no input ${unknown}`);
        }
        return { body: counts.body ?? 0, tail: counts.tail ?? 0 };
    }

    /** @returns {Run[]} The body, then tails of at most `out_rows` rows. */
    #runs(counts, pos) {
        const cells = 1 + pos.reduce((most, p) => Math.max(most, p), -1);
        const body = this.#schedule("body", counts.body, cells);
        const runs = [{ part: "body", first: 0, last: counts.body, schedule: body }];
        for (let first = 0; first < counts.tail; first += this.#plan.out_rows) {
            const last = Math.min(first + this.#plan.out_rows, counts.tail);
            runs.push({ part: "tail", first, last, schedule: this.#schedule("tail", last - first, 0) });
        }
        return runs;
    }

    /** The narrowest schedule for so many rows and for positions below `cells`. */
    #schedule(part, rows, cells) {
        const fits = (s) => s.part === part && s.rows >= rows && s.cells >= cells;
        const fitting = this.#plan.schedules.filter(fits);
        if (rows === 0 || fitting.length === 0) {
            throw new PlanReplayError(`the plan has no ${part} of ${rows} rows and ${cells} cells`);
        }
        return fitting.reduce((best, s) => ((s.rows - best.rows || s.cells - best.cells) < 0 ? s : best));
    }

    /** @param {Run} run */
    #writeInputs({ part, first, last, schedule }, inputs) {
        for (const [name, value] of Object.entries(this.#plan.inputs)) {
            if (value.part === part) {
                const width = value.row / 4;
                const padded = new ARRAYS[value.dtype](schedule.rows * width).fill(value.pad);
                padded.set(inputs[name].slice(first * width, last * width));
                this.#write(value.region, padded);
            }
        }
    }

    /** Submits launches, and `finish` after the last of them, without ever keeping the device busy for long. */
    async #replay(launches, signal, finish) {
        let first = 0;
        while (first < launches.length) {
            const last = this.#submissions.end(launches, first);
            if (last === first) {
                await this.#submissions.settle();
                continue;
            }
            signal?.throwIfAborted();
            this.#checkUsable();
            const now = launches.slice(first, last);
            this.#submissions.submit(costOf(now), (encoder) => {
                encode(encoder, now);
                if (last === launches.length) {
                    finish(encoder);
                }
            });
            first = last;
        }
    }

    /** Where in the readback buffer each output's rows come to lie. */
    #placeOutputs(counts) {
        let size = 0;
        const places = Object.entries(this.#plan.outputs).map(([name, value]) => {
            const place = { name, value, at: size };
            size += value.row * counts[value.part];
            return place;
        });
        return { places, size };
    }

    /** @param {Run} run */
    #copyOutputs(encoder, { part, first, last }, { places }) {
        for (const { value, at } of places) {
            if (value.part === part) {
                const [buffer, offset] = value.region;
                const [to, size] = [at + first * value.row, (last - first) * value.row];
                encoder.copyBufferToBuffer(this.#buffers[buffer], offset, this.#readback, to, size);
            }
        }
    }

    #splitOutputs(bytes, { places }, counts) {
        return Object.fromEntries(
            places.map(({ name, value: { row, part, dtype }, at }) => [
                name,
                new ARRAYS[dtype](bytes.slice(at, at + counts[part] * row)),
            ]),
        );
    }

    /** Makes room for `size` bytes to be read. */
    async #reserve(size) {
        if (this.#readback === null || this.#readback.size < size) {
            this.#readback?.destroy();
            this.#readback = null;
            const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
            this.#readback = await checked(this.#device, `${size} bytes for outputs`, () =>
                this.#device.createBuffer({ size, usage }),
            );
        }
    }

    /** The first `size` bytes of the readback buffer, when all that was submitted is done. */
    async #read(size) {
        try {
            // Together, because each is a way to the device and back.
            await Promise.all([this.#readback.mapAsync(GPUMapMode.READ, 0, size), this.#submissions.settle()]);
            return this.#readback.getMappedRange(0, size).slice(0);
        } finally {
            this.#readback.unmap();
        }
    }

    /** @param {Region} region @param {ArrayBufferView} data */
    #write([buffer, offset], data) {
        this.#device.queue.writeBuffer(this.#buffers[buffer], offset, data);
    }

    /** Writes and waits, so that browsers do not pile up copies of what is still to be written. */
    async #upload(region, data) {
        this.#write(region, data);
        await this.#device.queue.onSubmittedWorkDone();
        this.#checkUsable();
    }
}

/** The positions that the cells of one state hold, kept here too: truncating needs no answer from the device. */
class CellPositions {
    #offset;
    #buffer;
    #slots;
    #cells;
    #held;
    #write;

    /**
     * @param {State} state
     * @param {(region: Region, data: Int32Array) => void} write
     */
    constructor({ region, shape: [slots, cells] }, write) {
        [this.#buffer, this.#offset] = region;
        this.#slots = slots;
        this.#cells = cells;
        this.#write = write;
        this.#held = new Int32Array(slots * cells).fill(-1);
        write(region, this.#held);
    }

    /** What the device is about to do: row r puts pos[r] to its cell. */
    hold(pos, slot) {
        slot.forEach((s) => this.#check(s));
        pos.forEach((p, r) => {
            if (p >= 0) {
                this.#held[slot[r] * this.#cells + (p % this.#cells)] = p;
            }
        });
    }

    /** Empties the cells of rows whose step failed, whether the device has written them or not. */
    forget(pos, slot) {
        for (const s of new Set(slot)) {
            const ofStep = new Set(pos.filter((_, r) => slot[r] === s));
            this.#empty(s, (p) => ofStep.has(p));
        }
    }

    truncate(slot, length) {
        this.#check(slot);
        this.#empty(slot, (p) => p >= length);
    }

    #check(slot) {
        if (!(slot >= 0 && slot < this.#slots)) {
            throw new PlanReplayError(`there is no slot ${slot}, only ${this.#slots}`);
        }
    }

    /** Empties the cells of a slot that hold one of those positions. */
    #empty(slot, isGone) {
        const row = this.#held.subarray(slot * this.#cells, (slot + 1) * this.#cells);
        row.set(row.map((p) => (isGone(p) ? -1 : p)));
        this.#write([this.#buffer, this.#offset + row.byteOffset, row.byteLength], row);
    }
}

/** Commands on their way. Learns from the time that they take how much to submit before waiting. */
class Submissions {
    #device;
    #budget = FIRST_BUDGET;
    #cost = 0;
    #since = 0;
    /** @type {Promise<string | null>[]} */ #problems = [];

    constructor(device) {
        this.#device = device;
    }

    /** The end of the launches from `first` on that may be submitted now; `first` itself if it is time to settle. */
    end(launches, first) {
        let cost = this.#cost;
        let last = first;
        while (last < launches.length && (cost === 0 || cost + launches[last].cost <= this.#budget)) {
            cost += launches[last].cost;
            last++;
        }
        return last;
    }

    submit(cost, encodeTo) {
        if (this.#cost === 0) {
            this.#since = performance.now();
        }
        this.#cost += cost;
        const [, problem] = watched(this.#device, () => {
            const encoder = this.#device.createCommandEncoder();
            encodeTo(encoder);
            this.#device.queue.submit([encoder.finish()]);
        });
        this.#problems.push(problem);
    }

    /** Waits until the device is done. Throws what it had against the commands. */
    async settle() {
        await this.#device.queue.onSubmittedWorkDone();
        if (this.#cost > 0) {
            this.#learn(performance.now() - this.#since);
            this.#cost = 0;
        }
        const problems = await Promise.all(this.#problems.splice(0));
        const first = problems.find((problem) => problem !== null);
        if (first !== undefined) {
            throw new PlanReplayError(`can't run: ${first}`);
        }
    }

    /** By and by: launches of the same cost do not all take the same time. */
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

/** Reads pieces of the sizes asked for from pieces of any size. */
class PieceReader {
    #pieces;
    #rest = new Uint8Array();

    constructor(source) {
        this.#pieces = chunks(source);
    }

    /** The next `size` bytes; fewer only at the end. */
    async read(size) {
        const data = new Uint8Array(size);
        let at = 0;
        while (at < size && (await this.hasMore())) {
            const part = this.#rest.subarray(0, size - at);
            data.set(part, at);
            at += part.length;
            this.#rest = this.#rest.subarray(part.length);
        }
        return data.subarray(0, at);
    }

    async hasMore() {
        while (this.#rest.length === 0) {
            const { done, value } = await this.#pieces.next();
            if (done) {
                return false;
            }
            this.#rest = value;
        }
        return true;
    }

    /** Gives up what was not read. */
    close() {
        return this.#pieces.return();
    }
}

async function* chunks(source) {
    if (!source.getReader) {
        yield* source;
        return;
    }
    // Not every browser can iterate over a stream.
    const reader = source.getReader();
    try {
        for (let next = await reader.read(); !next.done; next = await reader.read()) {
            yield next.value;
        }
    } finally {
        await reader.cancel();
    }
}

/** The fills' regions, cut to pieces. */
function* piecesOf(fills) {
    for (const { region: [buffer, offset, size] } of fills) {
        for (let at = 0; at < size; at += PIECE) {
            yield [buffer, offset + at, Math.min(PIECE, size - at)];
        }
    }
}

/** @param {Launch[]} launches */
function costOf(launches) {
    return launches.reduce((sum, { cost }) => sum + cost, 0);
}

/** @param {GPUCommandEncoder} encoder @param {Launch[]} launches */
function encode(encoder, launches) {
    const pass = encoder.beginComputePass();
    for (const { pipeline, bindGroup, groups } of launches) {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, bindGroup);
        pass.dispatchWorkgroups(groups);
    }
    pass.end();
}

/** Throws if the device allows less than the plan needs. */
function checkLimits(device, plan) {
    const needs = Object.entries(Runtime.requiredLimits(plan));
    const small = needs.filter(([name, needed]) => device.limits[name] < needed);
    if (small.length > 0) {
        const each = small.map(([name, needed]) => `${name} is ${device.limits[name]}, the plan needs ${needed}`);
        throw new PlanReplayError(`the device allows too little: ${each.join("; ")}`);
    }
}

/**
 * Does `make`, at once. The promise is what the device has against it, or null; it never rejects, since it may be
 * looked at much later.
 * @template T
 * @param {GPUDevice} device
 * @param {() => T} make
 * @returns {[T, Promise<string | null>]}
 */
function watched(device, make) {
    const filters = ["validation", "out-of-memory", "internal"];
    filters.forEach((filter) => device.pushErrorScope(filter));
    const scopes = [];
    let made;
    try {
        made = make();
    } finally {
        filters.forEach(() => scopes.push(device.popErrorScope()));
    }
    const problem = Promise.all(scopes).then(
        (errors) => errors.find((error) => error !== null)?.message ?? null,
        () => null, // the device is lost, which others tell
    );
    return [made, problem];
}

/** Does `make`, at once, and throws what the device has against it, after `what`. */
async function checked(device, what, make) {
    const [made, problem] = watched(device, make);
    const message = await problem;
    if (message !== null) {
        throw new PlanReplayError(`${what}: ${message}`);
    }
    return made;
}

/** The value of `key`, made when it is first asked for. */
function remembered(map, key, make) {
    if (!map.has(key)) {
        map.set(key, make());
    }
    return map.get(key);
}

/** @param {GPUDevice} device @param {Kernel} kernel @returns {Promise<GPUShaderModule>} */
async function compileModule(device, kernel) {
    const [module, problem] = watched(device, () =>
        device.createShaderModule({ label: kernel.name, code: kernel.text }),
    );
    const { messages } = await module.getCompilationInfo();
    const mistake = messages.find(({ type }) => type === "error");
    if (mistake) {
        const place = mistake.lineNum ? placesOf(kernel)[mistake.lineNum - 1] : kernel.name;
        throw new PlanReplayError(`shader ${place}: ${mistake.message}`, listing(kernel, mistake.lineNum));
    }
    const message = await problem;
    if (message !== null) {
        throw new PlanReplayError(`shader ${kernel.name}: ${message}`);
    }
    return module;
}

/** Where each line of a kernel's text comes from, as `kernels/matvec.wgsl:17`. */
function placesOf(kernel) {
    return kernel.origin.flatMap(([file, first, count]) =>
        Array.from({ length: count }, (_, i) => `${file}:${first + i}`),
    );
}

/** The lines near line `number` (from 1), numbered as in their files, with a mark at it. */
function listing(kernel, number, around = 3) {
    const lines = kernel.text.split("\n");
    const low = Math.max(0, number - 1 - around);
    const places = placesOf(kernel).slice(low, number + around);
    const width = Math.max(...places.map((place) => place.length));
    const mark = (i) => (low + i + 1 === number ? ">" : " ");
    return places.map((place, i) => `${mark(i)} ${place.padEnd(width)} | ${lines[low + i]}`.trimEnd()).join("\n");
}
