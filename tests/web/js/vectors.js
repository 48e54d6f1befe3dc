/** What Python's modules made, for their counterparts: see tests/data/make_web_vectors.py. */

import { readFileSync } from "node:fs";

/** @param {string} name */
export function vectors(name) {
    return JSON.parse(readFileSync(new URL(`../../data/web/${name}.json`, import.meta.url), "utf8"));
}
