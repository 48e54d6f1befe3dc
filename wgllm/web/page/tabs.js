/** Which tabs of this page are open, so that one can tell replies that still come from those that never will. */

import { newId } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat @typedef {import("./tree.js").Message} Message */

const PREFIX = "wgllm-tab-";

/** Where a browser has no locks (plain http from another machine): so old, a reply comes no more. */
const SILENT_MS = 15_000;

/** A browser that has not granted a lock by then, which nobody else asks for, never will. */
const LOCK_MS = 5_000;

/** This tab's name. */
export const tab = newId();

/** Whether this browser has locks; it is known once this tab has its own. @type {Promise<boolean>} */
let held = Promise.resolve(false);

/** Tells the other tabs that this one is here, as long as it is. */
export function enter() {
    const { locks } = navigator;
    if (!locks) {
        return;
    }
    held = new Promise((resolve) => {
        setTimeout(() => resolve(false), LOCK_MS);
        const hold = () => {
            resolve(true);
            return new Promise(() => {});
        };
        locks.request(PREFIX + tab, hold).catch(() => resolve(false));
    });
}

/** Tells of a reply whether its tab is gone. @returns {Promise<(message: Message) => boolean>} */
export async function judge() {
    const state = (await held) ? await navigator.locks.query() : null;
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

/** Tells when tabs that write replies may be gone. */
export class Watch {
    /** @type {Set<string>} Of messages. */ #watched = new Set();
    #onGone;

    /** @param {(chat: string) => void} onGone */
    constructor(onGone) {
        this.#onGone = onGone;
    }

    /** Watches what other tabs write in this chat. @param {Chat} chat */
    over({ id: chat, messages }) {
        for (const { id, state, owner } of Object.values(messages)) {
            if (state === "partial" && owner !== tab && !this.#watched.has(id)) {
                this.#watched.add(id);
                void ended(owner).then(() => {
                    this.#watched.delete(id);
                    this.#onGone(chat);
                });
            }
        }
    }
}

/** @param {string} [owner] @returns {Promise<void>} */
async function ended(owner) {
    if (owner !== undefined && (await held)) {
        await navigator.locks.request(PREFIX + owner, () => {}); // which that tab holds as long as it is there
    } else {
        await new Promise((resolve) => {
            setTimeout(resolve, SILENT_MS + 1000);
        });
    }
}
