/**
 * Chats in the browser (IndexedDB). Several tabs may write the same one: each write takes in what another tab wrote,
 * in one transaction, and tells the other tabs.
 */

import { merged } from "./tree.js";

/**
 * @typedef {import("./tree.js").Chat} Chat
 * @typedef {{id: string, title: string, updated: number, messages: number}} Summary
 */

const NAME = "wgllm";

/** A chat was deleted by another tab. */
export class Gone extends Error {
    name = "Gone";
}

/** Why the browser keeps nothing. */
class NoStore extends Error {
    name = "NoStore";
}

/** @param {Chat} chat @returns {Summary} */
function summaryOf({ id, title, updated, messages }) {
    return { id, title, updated, messages: Object.keys(messages).length };
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function answer(request) {
    return new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
    });
}

/** @param {IDBTransaction} transaction @returns {Promise<void>} */
function finished(transaction) {
    return new Promise((resolve, reject) => {
        transaction.oncomplete = () => resolve();
        transaction.onabort = transaction.onerror = () =>
            reject(transaction.error ?? new NoStore("the browser kept nothing"));
    });
}

export class ChatStore {
    /** @type {(id: string) => void} Another tab has changed or deleted a chat. */
    onChange = () => {};
    keeps = true;
    #db;
    #channel = new BroadcastChannel(NAME);

    /** @param {IDBDatabase} db */
    constructor(db) {
        this.#db = db;
        db.onversionchange = () => db.close();
        this.#channel.onmessage = ({ data }) => this.onChange(String(data));
    }

    /** Throws NoStore. @returns {Promise<ChatStore>} */
    static async open() {
        try {
            const request = indexedDB.open(NAME, 1);
            request.onupgradeneeded = () => {
                request.result.createObjectStore("chats", { keyPath: "id" });
                request.result.createObjectStore("summaries", { keyPath: "id" });
            };
            return new ChatStore(await answer(request));
        } catch (error) {
            throw new NoStore(
                `the browser keeps no chats: ${error instanceof Error ? error.message : error}`,
            );
        }
    }

    /** The newest first. @returns {Promise<Summary[]>} */
    async list() {
        const all = await answer(this.#db.transaction("summaries").objectStore("summaries").getAll());
        return all.sort((a, b) => b.updated - a.updated);
    }

    /** @param {string} id @returns {Promise<Chat | null>} */
    async get(id) {
        return (await answer(this.#db.transaction("chats").objectStore("chats").get(id))) ?? null;
    }

    /**
     * Writes a chat, and takes into it what other tabs have written. Throws Gone where it was deleted.
     * @param {Chat} chat
     */
    async save(chat) {
        const transaction = this.#db.transaction(["chats", "summaries"], "readwrite");
        const chats = transaction.objectStore("chats");
        /** @type {Chat | undefined} */
        const stored = await answer(chats.get(chat.id));
        if (stored === undefined && chat.revision > 0) {
            throw new Gone("this chat was deleted in another tab");
        }
        if (stored !== undefined && stored.revision !== chat.revision) {
            Object.assign(chat, merged(stored, chat));
        }
        chat.revision++;
        chats.put(chat);
        transaction.objectStore("summaries").put(summaryOf(chat));
        try {
            await finished(transaction);
        } catch (error) {
            chat.revision--;
            throw error;
        }
        this.#channel.postMessage(chat.id);
    }

    /** @param {string} id */
    async remove(id) {
        const transaction = this.#db.transaction(["chats", "summaries"], "readwrite");
        transaction.objectStore("chats").delete(id);
        transaction.objectStore("summaries").delete(id);
        await finished(transaction);
        this.#channel.postMessage(id);
    }

    /** The chats with a text in their title or messages. @param {string} text @returns {Promise<Set<string>>} */
    async search(text) {
        const found = new Set();
        const request = this.#db.transaction("chats").objectStore("chats").openCursor();
        await new Promise((resolve, reject) => {
            request.onerror = () => reject(request.error);
            request.onsuccess = () => {
                const cursor = request.result;
                if (cursor === null) {
                    resolve(null);
                    return;
                }
                if (holds(cursor.value, text)) {
                    found.add(cursor.value.id);
                }
                cursor.continue();
            };
        });
        return found;
    }

    close() {
        this.#channel.close();
        this.#db.close();
    }
}

/** Whether all words of a text are in a chat. @param {Chat} chat @param {string} text */
export function holds(chat, text) {
    const whole = [chat.title, ...Object.values(chat.messages).map(({ content }) => content)]
        .join("\n")
        .toLocaleLowerCase();
    return text
        .toLocaleLowerCase()
        .split(/\s+/)
        .every((word) => whole.includes(word));
}

/** The same where the browser keeps nothing: until the tab closes. */
export class MemoryStore {
    /** @type {(id: string) => void} */ onChange = () => {};
    keeps = false;
    /** @type {Map<string, Chat>} */ #chats = new Map();

    async list() {
        return Array.from(this.#chats.values(), summaryOf).sort((a, b) => b.updated - a.updated);
    }

    /** @param {string} id */
    async get(id) {
        return this.#chats.get(id) ?? null;
    }

    /** @param {Chat} chat */
    async save(chat) {
        chat.revision++;
        this.#chats.set(chat.id, chat);
    }

    /** @param {string} id */
    async remove(id) {
        this.#chats.delete(id);
    }

    /** @param {string} text */
    async search(text) {
        return new Set(
            Array.from(this.#chats.values())
                .filter((chat) => holds(chat, text))
                .map(({ id }) => id),
        );
    }

    close() {}
}
