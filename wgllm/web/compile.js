/** Shaders of a device: each text is compiled once, and each of its entry points made a pipeline once. */

import { PlanReplayError, watched } from "./gpu_errors.js";

/** @import { Kernel } from "./plan.js" */

export class Compiler {
    #device;
    /** @type {Map<string, Promise<GPUShaderModule>>} By text. */ #modules = new Map();
    /** @type {Map<string, Promise<GPUComputePipeline>>} By entry and text. */ #pipelines = new Map();

    /** @param {GPUDevice} device */
    constructor(device) {
        this.#device = device;
    }

    /** @param {Kernel} kernel @returns {Promise<GPUComputePipeline>} */
    pipeline(kernel) {
        return remembered(this.#pipelines, Compiler.name(kernel), async () => {
            const module = await remembered(this.#modules, kernel.text, () =>
                compileModule(this.#device, kernel),
            );
            const compute = { module, entryPoint: kernel.entry };
            try {
                return await this.#device.createComputePipelineAsync({
                    label: kernel.entry,
                    layout: "auto",
                    compute,
                });
            } catch (error) {
                const said = `shader ${kernel.name}: can't build ${kernel.entry}: ${messageOf(error)}`;
                throw new PlanReplayError(said, "", "shader");
            }
        });
    }

    /** What a pipeline is known by. @param {Kernel} kernel */
    static name(kernel) {
        return `${kernel.entry}\n${kernel.text}`;
    }
}

/**
 * The value of `key`, made when it is first asked for.
 * @template K, V
 * @param {Map<K, V>} map
 * @param {K} key
 * @param {() => V} make
 * @returns {V}
 */
export function remembered(map, key, make) {
    if (!map.has(key)) {
        map.set(key, make());
    }
    return /** @type {V} */ (map.get(key));
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
        throw new PlanReplayError(
            `shader ${place}: ${mistake.message}`,
            listing(kernel, mistake.lineNum),
            "shader",
        );
    }
    const found = await problem;
    if (found !== null) {
        throw new PlanReplayError(`shader ${kernel.name}: ${found.message}`, "", "shader");
    }
    return module;
}

/** @param {unknown} error */
function messageOf(error) {
    return error instanceof Error ? error.message : String(error);
}

/** Where each line of a kernel's text comes from, as `kernels/matvec.wgsl:17`. @param {Kernel} kernel */
function placesOf(kernel) {
    return kernel.origin.flatMap(([file, first, count]) =>
        Array.from({ length: count }, (_, i) => `${file}:${first + i}`),
    );
}

/**
 * The lines near line `number` (from 1), numbered as in their files, with a mark at it.
 * @param {Kernel} kernel
 * @param {number} number
 */
function listing(kernel, number, around = 3) {
    const lines = kernel.text.split("\n");
    const low = Math.max(0, number - 1 - around);
    const places = placesOf(kernel).slice(low, number + around);
    const width = Math.max(...places.map((place) => place.length));
    /** @param {number} i */
    const mark = (i) => (low + i + 1 === number ? ">" : " ");
    return places
        .map((place, i) => `${mark(i)} ${place.padEnd(width)} | ${lines[low + i]}`.trimEnd())
        .join("\n");
}
