/** The schedules of a plan that are known so far, and what was compiled and bound for them on a device. */

import { Compiler, remembered } from "./compile.js";
import { checked, PlanReplayError } from "./gpu_errors.js";
import { widthName } from "./plan.js";

/**
 * @import { Dispatch, Kernel, Part, Plan, Schedules as Added, Width } from "./plan.js"
 * @import { Launch } from "./submissions.js"
 *
 * @typedef {Width & {dispatches: Dispatch[], kernels: Kernel[]}} Known A schedule, and the kernel of each dispatch.
 */

export class Schedules {
    #device;
    #plan;
    #buffers;
    #compiler;
    /** @type {Map<string, Known>} By width. */ #known = new Map();
    /** @type {Map<Known, Promise<Launch[]>>} */ #launches = new Map();

    /** @param {GPUDevice} device @param {Plan} plan @param {GPUBuffer[]} buffers The plan's. */
    constructor(device, plan, buffers) {
        this.#device = device;
        this.#plan = plan;
        this.#buffers = buffers;
        this.#compiler = new Compiler(device);
    }

    /** @param {Added} added */
    add({ schedules, kernels }) {
        for (const schedule of schedules) {
            const own = schedule.dispatches.map(([kernel]) => kernels[kernel]);
            this.#known.set(widthName(schedule), { ...schedule, kernels: own });
        }
    }

    /** @param {Width} width */
    has(width) {
        return this.#known.has(widthName(width));
    }

    /** The schedule of just that width. @param {Width} width @returns {Known} */
    of(width) {
        const schedule = this.#known.get(widthName(width));
        if (schedule === undefined) {
            throw new PlanReplayError(
                `the plan has no ${width.part} of ${width.rows} rows and ${width.cells} cells`,
            );
        }
        return schedule;
    }

    /**
     * The narrowest schedule for so many rows and for positions below `cells`.
     * @param {import("./plan.js").Part} part
     * @param {number} rows
     * @param {number} cells
     * @returns {Known}
     */
    narrowest(part, rows, cells) {
        const fitting = [...this.#known.values()].filter(
            (s) => s.part === part && s.rows >= rows && s.cells >= cells,
        );
        if (rows === 0 || fitting.length === 0) {
            throw new PlanReplayError(`the plan has no ${part} of ${rows} rows and ${cells} cells`);
        }
        return fitting.reduce((best, s) => ((s.rows - best.rows || s.cells - best.cells) < 0 ? s : best));
    }

    /**
     * Compiles the shaders of schedules.
     * @param {Width[]} widths
     * @param {(done: number, total: number) => void} onCompile
     */
    async compile(widths, onCompile) {
        const kernels = widths.flatMap((width) => this.of(width).kernels);
        const different = [...new Map(kernels.map((kernel) => [Compiler.name(kernel), kernel])).values()];
        let done = 0;
        await Promise.all(
            different.map(async (kernel) => {
                await this.#compiler.pipeline(kernel);
                onCompile(++done, different.length);
            }),
        );
    }

    /**
     * What a schedule launches, compiled and bound once.
     * @param {Known} schedule
     * @returns {Promise<Launch[]>}
     */
    launches(schedule) {
        return remembered(this.#launches, schedule, async () => {
            const { part, rows, dispatches, kernels } = schedule;
            const pipelines = await Promise.all(kernels.map((kernel) => this.#compiler.pipeline(kernel)));
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
}
