/**
 * What a plan holds, as `wgllm/plan.py` says it, and the arithmetic of its widths.
 *
 * @typedef {"body" | "tail" | "greedy" | "draw"} Part
 * @typedef {[buffer: number, offset: number, size: number]} Region
 * @typedef {{region: Region, row: number, part: Part, dtype: "f32" | "i32", pad: number}} Value
 * @typedef {{region: Region, kv_type: string, shape: number[]}} State
 * @typedef {[file: string, first: number, count: number]} Lines
 * @typedef {{name: string, entry: string, text: string, origin: Lines[]}} Kernel
 * @typedef {[kernel: number, bindings: Region[], groups: number, node: number, cost: number]} Dispatch
 * @typedef {{part: Part, rows: number, cells: number}} Width
 * @typedef {Width & {dispatches: Dispatch[]}} Schedule
 * @typedef {{schedules: Schedule[], kernels: Kernel[]}} Schedules The dispatches' kernels are those beside them.
 * @typedef {{op: string, outputs: string[], layer: number | null, part: Part}} PlannedNode
 * @typedef {{request: Region, taken: Region}} Sampling
 * @typedef {{
 *     version: number, limits: Record<string, number>, buffers: {name: string, size: number, role: string}[],
 *     fills: {region: Region}[], nodes: PlannedNode[], inputs: Record<string, Value>,
 *     outputs: Record<string, Value>, states: Record<string, State>, rows: number, out_rows: number,
 *     cells: number, least_cells: number, sampling?: Sampling | null, kernels?: Kernel[], schedules?: Schedule[],
 * }} Plan
 */

import { PlanReplayError } from "./gpu_errors.js";

export const VERSION = 2;

/** The plan's limits under WebGPU's names. @type {Record<string, string>} */
export const LIMITS = {
    maxBufferSize: "buffer",
    maxStorageBufferBindingSize: "binding",
    maxStorageBuffersPerShaderStage: "bindings",
    maxComputeWorkgroupStorageSize: "workgroup_memory",
    maxComputeInvocationsPerWorkgroup: "invocations",
    maxComputeWorkgroupSizeX: "invocations",
    maxComputeWorkgroupsPerDimension: "workgroups",
};

/**
 * What to give to `requestDevice` for a plan.
 * @param {Plan} plan
 * @returns {Record<string, number>}
 */
export function requiredLimits(plan) {
    return Object.fromEntries(Object.entries(LIMITS).map(([name, ours]) => [name, plan.limits[ours]]));
}

/** Throws if the device allows less than the plan needs. @param {GPUDevice} device @param {Plan} plan */
export function checkLimits(device, plan) {
    const has = /** @type {Record<string, number>} */ (/** @type {unknown} */ (device.limits));
    const small = Object.entries(requiredLimits(plan)).filter(([name, needed]) => has[name] < needed);
    if (small.length > 0) {
        const each = small.map(([name, needed]) => `${name} is ${has[name]}, the plan needs ${needed}`);
        throw new PlanReplayError(`the device allows too little: ${each.join("; ")}`);
    }
}

/**
 * The width that a server which lowers schedules on demand makes for so many rows, and for positions below `cells`.
 * @param {Plan} plan
 * @param {Part} part
 * @param {number} rows
 * @param {number} [cells]
 * @returns {Width}
 */
export function widthOf(plan, part, rows, cells = 0) {
    const most = part === "body" ? plan.rows : plan.out_rows;
    return {
        part,
        rows: roundUp(rows, 1, most),
        cells: cells && roundUp(cells, plan.least_cells, plan.cells),
    };
}

/** @param {Width} width A name for it. */
export function widthName({ part, rows, cells }) {
    return `${part} ${rows} ${cells}`;
}

/** Bytes of the packed weights. @param {Plan} plan */
export function packedSize(plan) {
    return plan.fills.reduce((sum, { region }) => sum + region[2], 0);
}

/**
 * The next power of two, between `least` and `most`.
 * @param {number} n
 * @param {number} least
 * @param {number} most
 */
function roundUp(n, least, most) {
    return Math.min(most, Math.max(least, 1 << (32 - Math.clz32(n - 1))));
}
