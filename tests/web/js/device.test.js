import assert from "node:assert/strict";
import { test } from "node:test";

import { adapterOf, limitsOf, nameOf, obstacle, openCard } from "../../../wgllm/web/device.js";

const INFO = { vendor: "", architecture: "", device: "", description: "" };
const LIMITS = {
    maxBufferSize: 2 ** 28,
    maxStorageBufferBindingSize: 2 ** 27,
    maxStorageBuffersPerShaderStage: 8,
    maxComputeWorkgroupStorageSize: 16384,
    maxComputeInvocationsPerWorkgroup: 256,
    maxComputeWorkgroupSizeX: 256,
    maxComputeWorkgroupsPerDimension: 65535,
    maxTextureDimension2D: 8192,
};

/** @param {object} changes */
function adapter(changes) {
    return /** @type {any} */ ({ info: INFO, limits: LIMITS, ...changes });
}

test("software is known by its flag or its name, cards are none", () => {
    for (const software of [
        { isFallbackAdapter: true },
        { info: { ...INFO, isFallbackAdapter: true } },
        { info: { ...INFO, vendor: "google", architecture: "swiftshader" } },
        { info: { ...INFO, description: "llvmpipe (LLVM 15.0.6)" } },
        { info: { ...INFO, description: "Microsoft Basic Render Driver" } },
    ]) {
        assert.ok(adapterOf(adapter(software)).software, JSON.stringify(software));
    }
    for (const info of [
        { ...INFO, vendor: "nvidia", architecture: "ampere" },
        { ...INFO, description: "Apple M2" },
        INFO,
    ]) {
        assert.ok(!adapterOf(adapter({ info })).software);
    }
});

test("of the limits those count that a plan may use, no larger than makes sense", () => {
    const { maxTextureDimension2D, ...ours } = LIMITS;
    assert.ok(maxTextureDimension2D);
    assert.deepEqual(limitsOf(LIMITS), ours);
    const vast = limitsOf(
        Object.fromEntries(Object.keys(LIMITS).map((name) => [name, Number.MAX_SAFE_INTEGER])),
    );
    assert.ok(Object.values(vast).every((value) => value <= 2 ** 32));
});

test("a card has a name for people, whatever the browser tells", () => {
    assert.equal(nameOf({ ...INFO, description: "Apple M2", vendor: "apple" }), "Apple M2");
    assert.equal(nameOf({ ...INFO, vendor: "nvidia", architecture: "ampere" }), "nvidia ampere");
    assert.equal(nameOf(INFO), "graphics card");
});

/**
 * @param {import("node:test").TestContext} context
 * @param {boolean} secure
 * @param {object | undefined} gpu
 */
function browser(context, secure, gpu) {
    for (const [name, value] of /** @type {[string, unknown][]} */ ([
        ["isSecureContext", secure],
        ["navigator", { gpu }],
    ])) {
        const before = Object.getOwnPropertyDescriptor(globalThis, name);
        Object.defineProperty(globalThis, name, { value, configurable: true });
        context.after(() => {
            if (before === undefined) {
                Reflect.deleteProperty(globalThis, name);
            } else {
                Object.defineProperty(globalThis, name, before);
            }
        });
    }
}

test("why a card can't be used is said before anything is loaded", async (context) => {
    browser(context, false, undefined);
    assert.equal((await obstacle())?.kind, "insecure");
    browser(context, true, undefined);
    assert.equal((await obstacle())?.kind, "no-webgpu");
    browser(context, true, { requestAdapter: async () => null });
    assert.equal((await obstacle())?.kind, "no-adapter");
    await assert.rejects(openCard(), { kind: "no-adapter" });
    browser(context, true, { requestAdapter: async () => Promise.reject(new Error("driver")) });
    assert.equal((await obstacle())?.kind, "no-adapter");
    browser(context, true, { requestAdapter: async () => adapter({}) });
    assert.equal(await obstacle(), null);
});

test("a browser that refuses the fast card may still have another", async (context) => {
    const other = adapter({
        requestDevice: async (/** @type {any} */ wish) => ({ limits: wish.requiredLimits }),
    });
    browser(context, true, {
        requestAdapter: async (/** @type {any} */ wish) => (wish?.powerPreference ? null : other),
    });
    const card = await openCard();
    assert.equal(card.limits.maxBufferSize, 2 ** 28);
    assert.equal(card.adapter.software, false);
});
