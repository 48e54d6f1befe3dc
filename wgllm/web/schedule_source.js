/** Schedules from the server: asked for once, compiled ahead of the steps that need them. */

import { ModelError } from "./errors.js";
import { widthName, widthOf } from "./plan.js";

/**
 * @import { Plan, Schedules, Width } from "./plan.js"
 *
 * @typedef {object} Target What this needs of a runtime.
 * @property {(added: Schedules) => void} addSchedules
 * @property {(width: Width) => boolean} has
 * @property {(width: Width) => Promise<void>} prepare
 */

/** Most widths of a request to the server. */
const MOST_WIDTHS = 64;

/** How many positions before the border of a width the next one is asked for. */
const MARGIN = 128;

export class ScheduleSource {
    #plan;
    #runtime;
    #fetch;
    /** @type {Map<string, Promise<void>>} By width: when it is there. */ #fetched = new Map();

    /**
     * @param {Plan} plan
     * @param {Target} runtime
     * @param {(widths: Width[]) => Promise<Schedules>} fetch
     */
    constructor(plan, runtime, fetch) {
        this.#plan = plan;
        this.#runtime = runtime;
        this.#fetch = fetch;
    }

    /**
     * What the steps of a prompt and the token after it need: `starts` and sizes of steps, in order.
     * @param {[start: number, rows: number][]} steps
     * @param {"greedy" | "draw"} part
     * @returns {Width[]}
     */
    widthsOf(steps, part) {
        const bodies = steps.map(([start, rows]) => widthOf(this.#plan, "body", rows, start + rows));
        const tail = widthOf(this.#plan, "tail", 1);
        return [...bodies, tail, { part, rows: 1, cells: 0 }];
    }

    /**
     * Asks for those that are not there; settles when all are, perhaps not yet compiled.
     * @param {Width[]} widths
     */
    async fetched(widths) {
        const missing = [...new Map(widths.map((width) => [widthName(width), width]))].filter(
            ([name]) => !this.#fetched.has(name),
        );
        for (let at = 0; at < missing.length; at += MOST_WIDTHS) {
            const some = missing.slice(at, at + MOST_WIDTHS);
            const coming = this.#add(some.map(([, width]) => width));
            for (const [name] of some) {
                this.#fetched.set(name, coming);
            }
            coming.catch(() => some.forEach(([name]) => this.#fetched.delete(name)));
        }
        await Promise.all(widths.map((width) => this.#fetched.get(widthName(width))));
    }

    /** Settles when all are there and compiled. @param {Width[]} widths */
    async ready(widths) {
        await this.fetched(widths);
        await Promise.all(widths.map((width) => this.#runtime.prepare(width)));
    }

    /**
     * What a step of one row needs that ends before `end`; before a border, the width after it is on its way.
     */
    async token(/** @type {number} */ end) {
        const { cells } = this.#plan;
        const width = widthOf(this.#plan, "body", 1, Math.max(1, end));
        if (end + MARGIN > width.cells && width.cells < cells) {
            this.ready([widthOf(this.#plan, "body", 1, width.cells + 1)]).catch(() => {}); // told when it is needed
        }
        await this.ready([width]);
    }

    /** @param {Width[]} widths */
    async #add(widths) {
        this.#runtime.addSchedules(await this.#fetch(widths));
        const missing = widths.find((width) => !this.#runtime.has(width));
        if (missing !== undefined) {
            throw new ModelError("server", `the server sent no schedule for ${widthName(missing)}`);
        }
    }
}
