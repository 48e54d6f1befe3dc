import assert from "node:assert/strict";
import { test } from "node:test";

test("what fails in the worker itself is the page's fault, not the server's", async () => {
    /** @type {any} */ let listener;
    const answer = new Promise((resolve) => {
        Object.assign(globalThis, {
            addEventListener: (/** @type {string} */ _, /** @type {unknown} */ given) => (listener = given),
            postMessage: resolve,
        });
    });
    await import("../../../wgllm/web/worker.js");
    listener({ data: { type: "load", id: 7, api: null, ctxSize: null } });
    const { type, id, error } = await answer;
    assert.deepEqual([type, id, error.kind], ["failed", 7, "page"]);
    assert.match(error.message, /null/);
});
