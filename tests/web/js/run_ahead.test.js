import assert from "node:assert/strict";
import { test } from "node:test";

import { KvCache } from "../../../wgllm/web/cache.js";
import { placesOf } from "../../../wgllm/web/pieces.js";
import { RunAhead } from "../../../wgllm/web/run_ahead.js";
import { drawsOf } from "../../../wgllm/web/sampling.js";
import { ScheduleSource } from "../../../wgllm/web/schedule_source.js";

const GREEDY = drawsOf({ temperature: 0, topK: 40, topP: 1, minP: 0 });
const NEVER = new AbortController().signal;

/** A device whose tokens are its positions. */
class FakeSteps {
    most = 2;
    careful = false;
    inFlight = 0;
    mostInFlight = 0;
    submitted = 0;
    #pos = 0;
    #rows = 1;

    /** @param {string} part @param {Uint32Array} words @param {number[]} tokens @param {number} pos */
    async begin(part, words, tokens, pos) {
        this.#pos = pos;
        this.#rows = tokens.length;
    }

    async submit() {
        this.submitted++;
        this.mostInFlight = Math.max(this.mostInFlight, ++this.inFlight);
    }

    async take() {
        this.inFlight--;
        this.#pos += this.#rows;
        this.#rows = 1;
        return this.#pos;
    }

    async drop() {
        this.inFlight = 0;
    }
}

test("steps go ahead of what is known, and no further than they may", async () => {
    const steps = new FakeSteps();
    const cache = new KvCache([], 64);
    const ahead = await RunAhead.begin(steps, cache, GREEDY, [5, 6, 7], 16);
    const tokens = [];
    for (let left = 6; left > 0; left--) {
        tokens.push(await ahead.next(left, NEVER));
        assert.ok(steps.inFlight < left);
    }
    assert.deepEqual(tokens, [3, 4, 5, 6, 7, 8]);
    assert.equal(steps.mostInFlight, 2);
    assert.equal(steps.submitted, 6);
    assert.equal(cache.length, 8);
    assert.equal(cache.commonPrefix([5, 6, 7, 3, 4, 5, 6, 7]), 8);
});

test("what runs ahead never takes from a ring what a row after a stop must see", async () => {
    for (let rows = 1; rows <= 6; rows++) {
        for (let last = 1; last <= rows; last++) {
            for (let count = 1; count < 12; count++) {
                const steps = new FakeSteps();
                const cache = new KvCache([{ cells: 5 + rows, window: 5 }], 64);
                for (let at = 0; at < 3; at++) {
                    cache.begin(rows);
                    cache.commit(Array.from({ length: rows }, () => 1));
                }
                const ahead = await RunAhead.begin(
                    steps,
                    cache,
                    GREEDY,
                    Array.from({ length: last }, () => 1),
                    rows,
                );
                for (let n = 0; n < count; n++) {
                    await ahead.next(9, NEVER);
                }
                const { length } = cache;
                assert.equal(cache.truncate(length), length, `${rows} ${last} ${count}`);
            }
        }
    }
});

const PLAN = /** @type {any} */ ({ rows: 16, out_rows: 4, cells: 1000, least_cells: 256 });

/** @param {{fail?: number}} [options] `fail`: how many requests fail first. */
function source({ fail = 0 } = {}) {
    /** @type {any[][]} */
    const asked = [];
    const known = new Set();
    /** @type {any[]} */
    const prepared = [];
    let failures = fail;
    const runtime = {
        /** @param {{schedules: any[]}} added */
        addSchedules: ({ schedules }) => schedules.forEach((each) => known.add(JSON.stringify(each))),
        /** @param {any} width */
        has: (width) => known.has(JSON.stringify(width)),
        /** @param {any} width */
        prepare: async (width) => {
            prepared.push(width);
        },
    };
    const made = new ScheduleSource(PLAN, runtime, async (widths) => {
        asked.push(widths);
        if (failures-- > 0) {
            throw new Error("no");
        }
        return { schedules: /** @type {any} */ (widths), kernels: [] };
    });
    return { made, asked, prepared };
}

test("schedules are asked for once, and the next one before its border", async () => {
    const { made, asked } = source();
    const cells = () => asked.flat().map((width) => width.cells);
    for (let end = 1; end <= 128; end++) {
        await made.token(end);
    }
    assert.deepEqual(cells(), [256]);
    await made.token(129);
    assert.deepEqual(cells(), [256, 512]);
    for (let end = 130; end <= 1000; end++) {
        await made.token(end);
    }
    assert.deepEqual(cells(), [256, 512, 1000]);
});

test("a request that failed is made again", async () => {
    const { made, asked } = source({ fail: 1 });
    const width = /** @type {any} */ ({ part: "tail", rows: 1, cells: 0 });
    await assert.rejects(made.ready([width]));
    await made.ready([width]);
    assert.equal(asked.length, 2);
});

test("widths of a prompt are rounded as the server rounds them", () => {
    const { made } = source();
    assert.deepEqual(
        made.widthsOf(
            [
                [0, 16],
                [250, 7],
                [990, 10],
            ],
            "draw",
        ),
        [
            { part: "body", rows: 16, cells: 256 },
            { part: "body", rows: 8, cells: 512 },
            { part: "body", rows: 16, cells: 1000 },
            { part: "tail", rows: 1, cells: 0 },
            { part: "draw", rows: 1, cells: 0 },
        ],
    );
});

test("bytes of the packed file go to their regions, wherever they begin", () => {
    const size = 5 << 20;
    const fills = /** @type {any} */ ([
        { region: [0, 256, 64] },
        { region: [1, 0, size] },
        { region: [0, 512, 32] },
    ]);
    assert.deepEqual(
        [...placesOf(fills, 16, 56)],
        [
            [0, [0, 272, 48]],
            [48, [1, 0, 8]],
        ],
    );
    const all = [...placesOf(fills, 0, 96 + size)];
    assert.deepEqual(all, [
        [0, [0, 256, 64]],
        [64, [1, 0, 4 << 20]],
        [64 + (4 << 20), [1, 4 << 20, 1 << 20]],
        [64 + size, [0, 512, 32]],
    ]);
});
