/** Keeps chats, and tells where that fails. */

import { notice } from "./notices.js";
import { Gone } from "./store.js";
import { judge } from "./tabs.js";
import { oneLine } from "./text.js";
import { markInterrupted } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat @typedef {import("./store.js").Summary} Summary */

export class Keeper {
    store;
    #onList;
    /** @type {Map<string, string>} What the list shows of each chat. */ #listed = new Map();
    /** @type {Set<Chat>} That could not be kept. */ #failed = new Set();

    /**
     * @param {import("./store.js").ChatStore | import("./store.js").MemoryStore} store
     * @param {(summaries: Summary[]) => void} onList All chats, after each change that their list shows.
     */
    constructor(store, onList) {
        this.store = store;
        this.#onList = onList;
    }

    /** A chat as it is kept; replies of tabs that are gone are told in it. @param {string} id @returns {Promise<Chat | null>} */
    async read(id) {
        const chat = await this.store.get(id);
        if (chat !== null && markInterrupted(chat, await judge())) {
            await this.save(chat);
        }
        return chat;
    }

    /** @param {Chat} chat @returns {Promise<boolean>} Whether it is kept. */
    async save(chat) {
        try {
            await this.store.save(chat);
        } catch (error) {
            this.#tell(chat, error);
            return false;
        }
        this.#failed.delete(chat);
        if (this.#failed.size === 0) {
            notice("store", "");
        }
        if (this.#listed.get(chat.id) !== lineOf(chat)) {
            await this.list();
        }
        return true;
    }

    /** A chat without messages is not kept. @param {Chat} chat */
    async saveIfKept(chat) {
        if (chat.revision > 0) {
            await this.save(chat);
        }
    }

    async list() {
        const summaries = await this.store.list();
        this.#listed = new Map(summaries.map((summary) => [summary.id, lineOf(summary)]));
        this.#onList(summaries);
    }

    /** @param {Chat} chat @param {unknown} error */
    #tell(chat, error) {
        if (error instanceof Gone) {
            notice("gone", "This chat was deleted in another tab.", {
                label: "Keep it",
                act: () => {
                    notice("gone", "");
                    chat.revision = 0;
                    void this.save(chat);
                },
            });
            return;
        }
        this.#failed.add(chat);
        notice("store", `${reasonOf(error)}: chats are not kept.`, {
            label: "Try again",
            act: () => {
                for (const failed of this.#failed) {
                    void this.save(failed);
                }
            },
        });
    }
}

/** @param {{title: string, updated: number}} shown */
function lineOf({ title, updated }) {
    return `${updated} ${title}`;
}

/** @param {unknown} error */
function reasonOf(error) {
    const { name, message } = error instanceof Error ? error : { name: "", message: String(error) };
    return name === "QuotaExceededError"
        ? "The browser has no room left"
        : `The browser can't write to its storage (${oneLine(message || name, 120)})`;
}
