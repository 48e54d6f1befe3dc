/** Which tabs of this page are open, so that one can tell replies that still come from those that never will. */

import { newId } from "./tree.js";

/** @typedef {import("./tree.js").Message} Message */

const PREFIX = "wgllm-tab-";

/** Where a browser has no locks (plain http from another machine): so old, a reply comes no more. */
const SILENT_MS = 15_000;

/** This tab's name. */
export const tab = newId();

let held = false;

/** Tells the other tabs that this one is here, as long as it is. */
export function enter() {
    void navigator.locks?.request(PREFIX + tab, () => {
        held = true;
        return new Promise(() => {});
    });
}

/** Tells of a reply whether its tab is gone. @returns {Promise<(message: Message) => boolean>} */
export async function judge() {
    const state = held ? await navigator.locks.query() : null;
    const names = state === null ? null : new Set((state.held ?? []).map(({ name }) => name));
    return ({ owner, touched, created }) => {
        if (owner === tab) {
            return false;
        }
        return names !== null && owner !== undefined
            ? !names.has(PREFIX + owner)
            : Date.now() - (touched ?? created) > SILENT_MS;
    };
}
