/** The visitor's graphics card: which one, and what it may be asked for. */

import { ModelError } from "./errors.js";
import { LIMITS } from "./plan.js";

/**
 * @typedef {{vendor: string, architecture: string, description: string, software: boolean}} Adapter
 * @typedef {object} Card
 * @property {GPUDevice} device
 * @property {Adapter} adapter
 * @property {string} name For people.
 * @property {Record<string, number>} limits What a plan may use.
 * @property {string[]} features What shaders may use: nothing, so far. Subgroups pay where they were tuned for a card.
 */

/**
 * More than this is of no use to a plan, and the largest numbers of some drivers are not true.
 * @type {Record<string, number>}
 */
const CAPS = {
    maxBufferSize: 2 ** 32,
    maxStorageBufferBindingSize: 2 ** 31,
    maxStorageBuffersPerShaderStage: 16,
    maxComputeWorkgroupStorageSize: 32768,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxComputeWorkgroupSizeX: 1024,
    maxComputeWorkgroupsPerDimension: 65535,
};

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|software|basic render|warp/i;

/**
 * Why models can't run on the visitor's card, before anything is loaded; null if they may.
 * @returns {Promise<ModelError | null>}
 */
export async function obstacle() {
    if (!globalThis.isSecureContext) {
        return new ModelError(
            "insecure",
            "browsers offer the graphics card only to https addresses, and to pages of this very machine",
        );
    }
    if (!navigator.gpu) {
        return new ModelError(
            "no-webgpu",
            "this browser has no WebGPU: a newer one may, or its settings turn it off",
        );
    }
    if ((await requestAdapter(navigator.gpu)) === null) {
        return new ModelError("no-adapter", "this browser offers no graphics card for WebGPU");
    }
    return null;
}

/** Opens the card, with all of its limits that count. @returns {Promise<Card>} */
export async function openCard() {
    const found = navigator.gpu ? await requestAdapter(navigator.gpu) : null;
    if (found === null) {
        throw new ModelError("no-adapter", "this browser offers no graphics card for WebGPU");
    }
    const limits = limitsOf(found.limits);
    const adapter = adapterOf(found);
    let device;
    try {
        device = await found.requestDevice({ requiredLimits: limits });
    } catch (error) {
        throw new ModelError(
            "no-adapter",
            `the graphics card can't be used: ${error instanceof Error ? error.message : error}`,
        );
    }
    return { device, adapter, name: nameOf(found.info), limits, features: [] };
}

/** Of an adapter's limits those that a plan may use, as far as they make sense. @param {object} limits */
export function limitsOf(limits) {
    const has = /** @type {Record<string, number>} */ (limits);
    return Object.fromEntries(Object.keys(LIMITS).map((name) => [name, Math.min(has[name], CAPS[name])]));
}

/** @param {GPUAdapter} adapter @returns {Adapter} */
export function adapterOf(adapter) {
    const { vendor, architecture, description } = adapter.info;
    const told = [adapter, adapter.info].some((each) => /** @type {any} */ (each).isFallbackAdapter === true);
    const software = told || SOFTWARE.test(`${vendor} ${architecture} ${description}`);
    return { vendor, architecture, description, software };
}

/** @param {{vendor: string, architecture: string, device: string, description: string}} info */
export function nameOf({ vendor, architecture, device, description }) {
    return description || device || `${vendor} ${architecture}`.trim() || "graphics card";
}

/** @param {GPU} gpu @returns {Promise<GPUAdapter | null>} */
async function requestAdapter(gpu) {
    try {
        return (
            (await gpu.requestAdapter({ powerPreference: "high-performance" })) ??
            (await gpu.requestAdapter())
        );
    } catch {
        return null;
    }
}
