/** What the shader that draws tokens is told of a request: the counterpart of `wgllm/sampler_words.py`. */

import { ModelError } from "./errors.js";

/**
 * How many candidates it keeps of all tokens: `topK` of more, and 0, which elsewhere is all, mean so many here.
 */
export const MOST_CANDIDATES = 128;

const REQUEST_WORDS = 16;
const KINDS = { topK: 1, topP: 2, minP: 3, temperature: 4 };

/**
 * @import { Sampling } from "./model.js"
 *
 * @typedef {{part: "greedy" | "draw", seed: number | bigint, words: (step: number) => Uint32Array<ArrayBuffer>}} Draws
 *     `words`: what lies at the plan's request before the draw of that number.
 */

/**
 * How the device chooses the tokens of a request: top_k, top_p, min_p and temperature in that order, without those
 * that do nothing. With the same seed it draws the tokens that Python's engine draws.
 * @param {Pick<Sampling, "temperature" | "topK" | "topP" | "minP"> & {seed?: number | bigint | null}} sampling A negative
 *     seed draws a fresh one, as none does.
 * @returns {Draws}
 */
export function drawsOf({ temperature, topK, topP, minP, seed = null }) {
    check("temperature", temperature, -1e6, 1e6);
    check("top_k", topK, -(2 ** 31), 2 ** 31);
    check("top_p", topP, 0, 1e6);
    check("min_p", minP, 0, 1);
    const used = seed === null || seed < 0 ? freshSeed() : seed;
    const key = wholeSeed(used);
    if (temperature <= 0) {
        return { part: "greedy", seed: used, words: (step) => wordsOf(key, step, []) };
    }
    const k = topK > 0 ? Math.min(Math.trunc(topK), MOST_CANDIDATES) : MOST_CANDIDATES;
    /** @type {[number, number][]} */
    const links = [[KINDS.topK, k]];
    if (topP < 1) {
        links.push([KINDS.topP, bitsOf(topP)]);
    }
    if (minP > 0) {
        links.push([KINDS.minP, bitsOf(Math.log(minP))]);
    }
    links.push([KINDS.temperature, bitsOf(temperature)]);
    return { part: "draw", seed: used, words: (step) => wordsOf(key, step, links) };
}

/** Seed (2 words), step, number of links, then of each its kind and its parameter. */
function wordsOf(
    /** @type {bigint} */ seed,
    /** @type {number} */ step,
    /** @type {[number, number][]} */ links,
) {
    const words = new Uint32Array(REQUEST_WORDS);
    words.set([Number(seed & 0xffffffffn), Number(seed >> 32n), step, links.length, ...links.flat()]);
    return words;
}

/** The bits of a number as float32. @param {number} value */
function bitsOf(value) {
    return new Uint32Array(Float32Array.of(value).buffer)[0];
}

function freshSeed() {
    return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** @param {number | bigint} seed */
function wholeSeed(seed) {
    if (typeof seed === "number" && !Number.isSafeInteger(seed)) {
        throw new ModelError("request", `seed ${seed} is not a whole number`);
    }
    const whole = BigInt(seed);
    if (whole >= 1n << 64n) {
        throw new ModelError("request", `seed ${seed} has more than 64 bits`);
    }
    return whole;
}

/** @param {string} name @param {number} value @param {number} low @param {number} high */
function check(name, value, low, high) {
    if (!(value >= low && value <= high)) {
        throw new ModelError("request", `${name} ${value} must lie between ${low} and ${high}`);
    }
}
