/** Keeps chats, and tells where that fails. */

import { notice } from "./notices.js";
import { Gone } from "./store.js";

/** @typedef {import("./tree.js").Chat} Chat @typedef {import("./store.js").Summary} Summary */

export class Keeper {
    store;
    #onList;

    /**
     * @param {import("./store.js").ChatStore | import("./store.js").MemoryStore} store
     * @param {(summaries: Summary[]) => void} onList All chats, after each change.
     */
    constructor(store, onList) {
        this.store = store;
        this.#onList = onList;
    }

    /** @param {Chat} chat @returns {Promise<boolean>} Whether it is kept. */
    async save(chat) {
        try {
            await this.store.save(chat);
        } catch (error) {
            const gone = error instanceof Gone;
            const said = gone
                ? "This chat was deleted in another tab."
                : "The browser has no room left: this chat is not kept.";
            notice("store", said, {
                label: gone ? "Keep it" : "Try again",
                act: () => {
                    chat.revision = gone ? 0 : chat.revision;
                    void this.save(chat);
                },
            });
            return false;
        }
        notice("store", "");
        await this.list();
        return true;
    }

    /** A chat without messages is not kept. @param {Chat} chat */
    async saveIfKept(chat) {
        if (chat.revision > 0) {
            await this.save(chat);
        }
    }

    async list() {
        this.#onList(await this.store.list());
    }
}
