import assert from "node:assert/strict";
import { test } from "node:test";

import { Batch } from "../../../wgllm/web/batch.js";

test("the first goes out at once, those that follow together, none is lost", (context) => {
    context.mock.timers.enable({ apis: ["setTimeout"] });
    let now = 0;
    /** @type {number[][]} */
    const sent = [];
    const batch = new Batch(
        (/** @type {number[]} */ all) => sent.push(all),
        () => now,
    );
    /** @param {number} ms */
    const pass = (ms) => {
        now += ms;
        context.mock.timers.tick(ms);
    };
    batch.add(1);
    assert.deepEqual(sent, [[1]]);
    batch.add(2);
    pass(10);
    batch.add(3);
    assert.deepEqual(sent, [[1]]);
    pass(6);
    assert.deepEqual(sent, [[1], [2, 3]]);
    batch.add(4);
    batch.flush();
    batch.flush();
    assert.deepEqual(sent, [[1], [2, 3], [4]]);
    pass(100);
    batch.add(5);
    assert.deepEqual(sent, [[1], [2, 3], [4], [5]]);
});
