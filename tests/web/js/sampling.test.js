import assert from "node:assert/strict";
import { test } from "node:test";

import { drawsOf } from "../../../wgllm/web/sampling.js";
import { vectors } from "./vectors.js";

const USUAL = { temperature: 0.8, topK: 40, topP: 0.95, minP: 0.05, seed: 1 };

test("request words are those of Python", () => {
    const all = vectors("sampling");
    assert.ok(all.length > 20);
    for (const { temperature, top_k, top_p, min_p, seed, step, words } of all) {
        const draws = drawsOf({ temperature, topK: top_k, topP: top_p, minP: min_p, seed: BigInt(seed) });
        assert.deepEqual([...draws.words(step)], words);
        assert.equal(draws.part, temperature > 0 ? "draw" : "greedy");
    }
});

test("top_k of none and of many is as many as the device keeps", () => {
    for (const topK of [0, -1, 129, 1e9]) {
        assert.deepEqual(drawsOf({ ...USUAL, topK }).words(0), drawsOf({ ...USUAL, topK: 128 }).words(0));
    }
});

test("seeds: numbers and bigints alike, fresh ones where none is given", () => {
    assert.deepEqual(drawsOf({ ...USUAL, seed: 7 }).words(0), drawsOf({ ...USUAL, seed: 7n }).words(0));
    const fresh = [null, undefined, -1, -1n].map((seed) => drawsOf({ ...USUAL, seed }).seed);
    assert.equal(new Set(fresh).size, 4);
    for (const seed of fresh) {
        assert.ok(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32);
    }
});

test("what makes no sense is refused by name", () => {
    for (const wrong of [
        { temperature: NaN },
        { topP: -1 },
        { minP: 2 },
        { topK: "a" },
        { seed: 0.5 },
        { seed: 2 ** 60 },
        { seed: 1n << 64n },
        { temperature: Infinity },
    ]) {
        const name =
            { topP: "top_p", minP: "min_p", topK: "top_k" }[Object.keys(wrong)[0]] ?? Object.keys(wrong)[0];
        const sampling = /** @type {any} */ ({ ...USUAL, ...wrong });
        assert.throws(() => drawsOf(sampling), {
            name: "ModelError",
            kind: "request",
            message: new RegExp(name),
        });
    }
});
