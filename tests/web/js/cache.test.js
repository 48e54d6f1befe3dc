import assert from "node:assert/strict";
import { test } from "node:test";

import { KvCache } from "../../../wgllm/web/cache.js";
import { vectors } from "./vectors.js";

test("random operations leave what they leave in Python's cache", () => {
    for (const { ctx, rings, steps } of vectors("cache")) {
        const cache = new KvCache(rings, ctx);
        for (const [kind, n, tokens, told, length] of steps) {
            if (kind === "extend") {
                cache.begin(n);
                cache.commit(tokens);
                assert.equal(cache.length, told);
            } else if (kind === "fail") {
                cache.begin(n);
                assert.equal(cache.truncate(cache.length), told);
            } else if (kind === "prefix") {
                assert.equal(cache.commonPrefix(tokens), told);
            } else {
                assert.equal(cache.truncate(n), told);
            }
            assert.equal(cache.length, length);
        }
    }
});
