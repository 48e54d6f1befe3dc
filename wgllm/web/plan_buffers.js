/** The buffers of a plan on a device, and the way into and out of them. */

import { checked } from "./gpu_errors.js";

/**
 * @import { Answers } from "./answers.js"
 * @import { Plan, Region } from "./plan.js"
 */

export class PlanBuffers {
    #device;
    #plan;
    #answers;
    /** @type {GPUBuffer | null} */ #readback = null;
    /** In the plan's order. @type {GPUBuffer[]} */
    all = [];

    /** @param {GPUDevice} device @param {Plan} plan @param {Answers} answers */
    constructor(device, plan, answers) {
        this.#device = device;
        this.#plan = plan;
        this.#answers = answers;
    }

    async allocate() {
        const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
        await Promise.all(
            this.#plan.buffers.map(({ name, size }, i) =>
                checked(this.#device, `buffer ${name} of ${size} bytes`, () => {
                    this.all[i] = this.#device.createBuffer({ label: name, size, usage });
                }),
            ),
        );
    }

    /** @param {Region} region @param {ArrayBufferView<ArrayBuffer>} data */
    write([buffer, offset], data) {
        this.#device.queue.writeBuffer(this.all[buffer], offset, data);
    }

    /**
     * Writes and waits, so that browsers do not pile up copies of what is still to be written.
     * @param {Region} region
     * @param {ArrayBufferView<ArrayBuffer>} data
     */
    async upload(region, data) {
        await checked(this.#device, `${region[2]} bytes of weights`, () => this.write(region, data));
        await this.#answers.workDone();
    }

    /** A buffer from which `size` bytes can be read. @param {number} size @returns {Promise<GPUBuffer>} */
    async reserve(size) {
        if (this.#readback === null || this.#readback.size < size) {
            this.#readback?.destroy();
            this.#readback = null;
            const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
            this.#readback = await checked(this.#device, `${size} bytes for outputs`, () =>
                this.#device.createBuffer({ size, usage }),
            );
        }
        return this.#readback;
    }

    destroy() {
        this.all.forEach((buffer) => buffer.destroy());
        this.#readback?.destroy();
    }
}
