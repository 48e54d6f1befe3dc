/**
 * The rows of a step: which numbers go in, which schedules compute them, and where the outputs come to lie.
 */

import { PlanReplayError } from "./gpu_errors.js";

/**
 * @import { Numbers } from "./cells.js"
 * @import { Plan, Value } from "./plan.js"
 * @import { Known, Schedules } from "./schedules.js"
 *
 * @typedef {{body: number, tail: number}} Counts Rows of the body and of the tail.
 * @typedef {{part: "body" | "tail", first: number, last: number, schedule: Known}} Run Rows of a step, or of those
 *     that get outputs, and what computes them.
 * @typedef {{places: {name: string, value: Value, at: number}[], size: number}} Places
 */

const ARRAYS = { f32: Float32Array, i32: Int32Array };

/**
 * How many rows a step has; checks that all inputs agree.
 * @param {Plan} plan
 * @param {Record<string, Numbers>} inputs
 * @returns {Counts}
 */
export function countRows(plan, inputs) {
    /** @type {Record<string, number>} */
    const counts = {};
    for (const [name, { row, part }] of Object.entries(plan.inputs)) {
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
    const unknown = Object.keys(inputs).find((name) => !(name in plan.inputs));
    if (unknown !== undefined) {
        throw new PlanReplayError(`the plan has no input ${unknown}`);
    }
    return { body: counts.body ?? 0, tail: counts.tail ?? 0 };
}

/**
 * The body, then tails of at most `out_rows` rows.
 * @param {Plan} plan
 * @param {Schedules} schedules
 * @param {Counts} counts
 * @param {Numbers} pos
 * @returns {Run[]}
 */
export function runsOf(plan, schedules, counts, pos) {
    const cells = 1 + Array.from(pos).reduce((most, p) => Math.max(most, p), -1);
    const body = schedules.narrowest("body", counts.body, cells);
    /** @type {Run[]} */
    const runs = [{ part: "body", first: 0, last: counts.body, schedule: body }];
    for (let first = 0; first < counts.tail; first += plan.out_rows) {
        const last = Math.min(first + plan.out_rows, counts.tail);
        runs.push({ part: "tail", first, last, schedule: schedules.narrowest("tail", last - first, 0) });
    }
    return runs;
}

/**
 * The numbers of rows `first` to `last`, and of padding up to `rows`.
 * @param {Value} value
 * @param {Numbers} numbers
 * @param {number} first
 * @param {number} last
 * @param {number} rows
 */
export function padded(value, numbers, first, last, rows) {
    const width = value.row / 4;
    const made = new ARRAYS[value.dtype](rows * width).fill(value.pad);
    made.set(Array.prototype.slice.call(numbers, first * width, last * width));
    return made;
}

/**
 * Where among the bytes that are read each output's rows come to lie.
 * @param {Plan} plan
 * @param {Counts} counts
 */
export function placeOutputs(plan, counts) {
    let size = 0;
    const places = Object.entries(plan.outputs).map(([name, value]) => {
        const place = { name, value, at: size };
        size += value.row * rowsOf(counts, value);
        return place;
    });
    return { places, size };
}

/** @param {ArrayBuffer} bytes @param {Places} outputs @param {Counts} counts */
export function splitOutputs(bytes, { places }, counts) {
    return Object.fromEntries(
        places.map(({ name, value, at }) => [
            name,
            new ARRAYS[value.dtype](bytes.slice(at, at + rowsOf(counts, value) * value.row)),
        ]),
    );
}

/** @param {Counts} counts @param {Value} value */
function rowsOf(counts, { part }) {
    return part === "body" || part === "tail" ? counts[part] : 0;
}
