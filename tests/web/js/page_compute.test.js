import assert from "node:assert/strict";
import { test } from "node:test";

import { Compute, LoadingStages } from "../../../wgllm/web/page/compute.js";

Object.assign(globalThis, { location: { hostname: "box.lan" } });

const INFO = { id: "large", nbytes: 1e9 };

/** A promise and what settles it. */
function later() {
    let settle = /** @type {(value: any) => void} */ (() => {});
    const promise = new Promise((resolve) => {
        settle = resolve;
    });
    return { promise, settle };
}

/** Models of which each tells what was done with it. */
function made({ stored = async () => ({ models: [], bytes: 0 }) } = {}) {
    /** @type {any[]} */
    const models = [];
    const make = (/** @type {"gpu" | "server"} */ kind) => () => {
        const model = {
            kind,
            onLost: null,
            onFacts: null,
            closed: false,
            loads: 0,
            load: async () => {
                model.loads++;
                return { where: kind };
            },
            generate: null,
            close: () => {
                model.closed = true;
            },
        };
        models.push(model);
        return /** @type {any} */ (model);
    };
    const makers = { gpu: make("gpu"), server: make("server"), obstacle: async () => null, stored };
    return { models, compute: new Compute(/** @type {any} */ (null), /** @type {any} */ (INFO), makers) };
}

test("another model's weights in the browser don't let a large one load unasked", async () => {
    for (const [models, phase] of /** @type {const} */ ([
        [[{ id: "other", bytes: 9e9 }], "asking"],
        [
            [
                { id: "other", bytes: 9e9 },
                { id: "large", bytes: 4e8 },
            ],
            "asking",
        ],
        [[{ id: "large", bytes: 6e8 }], "ready"],
    ])) {
        const { compute } = made({ stored: async () => ({ models: [...models], bytes: 9e9 }) });
        await compute.choose("gpu", { ask: true });
        assert.equal(compute.phase, phase);
    }
});

test("a storage that fails is as an empty one", async () => {
    const { compute } = made({ stored: () => Promise.reject(new Error("no")) });
    await compute.choose("gpu", { ask: true });
    assert.equal(compute.phase, "asking");
});

test("what was chosen last holds, though the storage answers later", async () => {
    const stored = later();
    const { compute, models } = made({ stored: () => stored.promise });
    const first = compute.choose("gpu", { ask: true });
    await new Promise((resolve) => {
        setImmediate(resolve);
    });
    await compute.choose("server");
    stored.settle({ models: [], bytes: 0 });
    await first;
    assert.deepEqual([compute.where, compute.phase], ["server", "ready"]);
    assert.deepEqual(
        models.map(({ kind, closed, loads }) => [kind, closed, loads]),
        [
            ["gpu", true, 0],
            ["server", false, 1],
        ],
    );
});

test("what a model tells later is shown, but not of one that is gone", async () => {
    const { compute, models } = made();
    await compute.choose("server");
    let changes = 0;
    compute.onChange = () => changes++;
    models[0].onFacts({ where: "a card" });
    assert.deepEqual([compute.facts.where, changes], ["a card", 1]);
    await compute.choose("gpu");
    assert.equal(models[0].onFacts, null);
});

test("weights are shown until they are there, with their own speed, whatever comes between", () => {
    const stages = new LoadingStages();
    stages.add({ stage: "plan", done: 1, total: 1, cached: 0 }, 0);
    assert.equal(stages.shown?.stage, "plan");
    const shown = [];
    for (let i = 0; i <= 10; i++) {
        stages.add({ stage: "weights", done: i * 100, total: 1000, cached: 0 }, i);
        stages.add({ stage: "shaders", done: i, total: 20, cached: 0 }, i + 0.01);
        shown.push(stages.shown);
    }
    assert.deepEqual(
        shown.map((each) => each?.stage),
        [...Array(10).fill("weights"), "shaders"],
    );
    assert.equal(shown[9]?.speed, 100);
    stages.add({ stage: "shaders", done: 20, total: 20, cached: 0 }, 12);
    assert.equal(stages.shown?.stage, "shaders");
    stages.add({ stage: "plan", done: 0, total: 1, cached: 0 }, 13); // once more, with less context
    assert.equal(stages.shown?.stage, "plan");
    stages.add({ stage: "weights", done: 0, total: 1000, cached: 0 }, 14);
    assert.deepEqual([stages.shown?.stage, stages.shown?.speed], ["weights", null]);
});
