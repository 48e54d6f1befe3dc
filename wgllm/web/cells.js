/**
 * The positions that the cells of one state hold, kept here too: truncating needs no answer from the device.
 */

import { PlanReplayError } from "./gpu_errors.js";

/** @import { Region, State } from "./plan.js" */

/** @typedef {ArrayLike<number> & Iterable<number>} Numbers */

export class CellPositions {
    #offset;
    #buffer;
    #slots;
    #cells;
    #held;
    #write;

    /**
     * @param {State} state
     * @param {(region: Region, data: Int32Array<ArrayBuffer>) => void} write
     */
    constructor({ region, shape: [slots, cells] }, write) {
        [this.#buffer, this.#offset] = region;
        this.#slots = slots;
        this.#cells = cells;
        this.#write = write;
        this.#held = new Int32Array(slots * cells).fill(-1);
        write(region, this.#held);
    }

    /**
     * What the device is about to do: row r puts pos[r] to its cell.
     * @param {Numbers} pos
     * @param {Numbers} slot
     */
    hold(pos, slot) {
        for (const s of slot) {
            this.#check(s);
        }
        for (let r = 0; r < pos.length; r++) {
            if (pos[r] >= 0) {
                this.#held[slot[r] * this.#cells + (pos[r] % this.#cells)] = pos[r];
            }
        }
    }

    /**
     * Empties the cells of rows whose step failed, whether the device has written them or not.
     * @param {Numbers} pos
     * @param {Numbers} slot
     */
    forget(pos, slot) {
        for (const s of new Set(slot)) {
            const ofStep = new Set(Array.from(pos).filter((_, r) => slot[r] === s));
            this.#empty(s, (p) => ofStep.has(p));
        }
    }

    /** @param {number} slot @param {number} length */
    truncate(slot, length) {
        this.#check(slot);
        this.#empty(slot, (p) => p >= length);
    }

    /** Of all slots. */
    clear() {
        this.#held.fill(-1);
        this.#write([this.#buffer, this.#offset, this.#held.byteLength], this.#held);
    }

    /** @param {number} slot */
    #check(slot) {
        if (!(slot >= 0 && slot < this.#slots)) {
            throw new PlanReplayError(`there is no slot ${slot}, only ${this.#slots}`);
        }
    }

    /**
     * Empties the cells of a slot that hold one of those positions.
     * @param {(p: number) => boolean} isGone
     */
    #empty(/** @type {number} */ slot, isGone) {
        const row = this.#held.subarray(slot * this.#cells, (slot + 1) * this.#cells);
        row.set(row.map((p) => (isGone(p) ? -1 : p)));
        this.#write([this.#buffer, this.#offset + row.byteOffset, row.byteLength], row);
    }
}
