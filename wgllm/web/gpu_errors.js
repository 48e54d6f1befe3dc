/** What a device, or a plan on it, has against what it is asked to do. */

/** How long a loss may take to be told. */
const LOSS_MS = 1000;

/** What can't be replayed, and why, in one line. */
export class PlanReplayError extends Error {
    name = "PlanReplayError";

    /**
     * @param {string} message
     * @param {string} listing For shaders: numbered lines of the file around the mistake.
     * @param {"plan" | "shader" | "out-of-memory" | "lost"} kind
     */
    constructor(message, listing = "", kind = "plan") {
        super(message.replace(/\s+/g, " ").trim());
        this.listing = listing;
        this.kind = kind;
    }
}

/**
 * @typedef {{message: string, outOfMemory: boolean}} Problem
 */

/**
 * Does `make`, at once. The promise is what the device has against it, or null; it never rejects, since it may be
 * looked at much later.
 * @template T
 * @param {GPUDevice} device
 * @param {() => T} make
 * @returns {[T, Promise<Problem | null>]}
 */
export function watched(device, make) {
    const filters = /** @type {const} */ (["validation", "out-of-memory", "internal"]);
    filters.forEach((filter) => device.pushErrorScope(filter));
    /** @type {Promise<GPUError | null>[]} */
    const scopes = [];
    let made;
    try {
        made = make();
    } finally {
        filters.forEach(() => scopes.push(device.popErrorScope()));
    }
    const problem = Promise.all(scopes).then(
        (errors) => problemOf(errors.find((error) => error !== null) ?? null),
        () => null, // the device is lost, which others tell
    );
    return [made, problem];
}

/**
 * Does `make`, at once, and throws what the device has against it, after `what`.
 * @template T
 * @param {GPUDevice} device
 * @param {string} what
 * @param {() => T} make
 * @returns {Promise<T>}
 */
export async function checked(device, what, make) {
    const [made, problem] = watched(device, make);
    throwProblem(what, await problem);
    return made;
}

/**
 * Waits until a buffer can be read.
 * @param {GPUDevice} device
 * @param {GPUBuffer} buffer
 * @param {number} size
 */
export async function mapped(device, buffer, size) {
    try {
        await buffer.mapAsync(GPUMapMode.READ, 0, size);
    } catch (error) {
        // A device that is lost says so a moment after its buffers are gone.
        const moment = new Promise((resolve) => {
            setTimeout(resolve, LOSS_MS);
        });
        await Promise.race([device.lost, moment]);
        throw new PlanReplayError(
            `can't read what was computed: ${error instanceof Error ? error.message : error}`,
        );
    }
}

/** @param {string} what @param {Problem | null | undefined} problem */
export function throwProblem(what, problem) {
    if (problem) {
        throw new PlanReplayError(
            `${what}: ${problem.message}`,
            "",
            problem.outOfMemory ? "out-of-memory" : "plan",
        );
    }
}

/** @param {GPUError | null} error @returns {Problem | null} */
function problemOf(error) {
    return error && { message: error.message, outOfMemory: error instanceof GPUOutOfMemoryError };
}
