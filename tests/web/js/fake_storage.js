/**
 * The browser's own file system (OPFS) in memory, with what can go wrong: no room, a tab that is killed, a lock.
 */

export class FakeStorage {
    /** @param {{quota?: number}} [options] */
    constructor({ quota = Infinity } = {}) {
        this.quota = quota;
        /** Bytes that may still be written before the tab dies. */
        this.killAfter = Infinity;
        this.writes = 0;
        this.root = new Folder(this);
    }

    async getDirectory() {
        return this.root;
    }

    /** @returns {number} */
    get used() {
        return this.root.used;
    }
}

/** The tab was closed while it was writing. */
export class Killed extends Error {}

class Folder {
    kind = "directory";
    /** @type {Map<string, Folder | File>} */ entries = new Map();

    /** @param {FakeStorage} storage */
    constructor(storage) {
        this.storage = storage;
    }

    /** @returns {number} */
    get used() {
        return [...this.entries.values()].reduce((sum, each) => sum + each.used, 0);
    }

    /** @param {string} name @param {{create?: boolean}} [options] */
    async getDirectoryHandle(name, options) {
        return this.#get(name, options, Folder);
    }

    /** @param {string} name @param {{create?: boolean}} [options] */
    async getFileHandle(name, options) {
        return this.#get(name, options, File);
    }

    /** @param {string} name */
    async removeEntry(name) {
        const entry = this.entries.get(name);
        if (entry === undefined) {
            throw new DOMException(name, "NotFoundError");
        }
        if (entry instanceof File && entry.locked) {
            throw new DOMException(name, "NoModificationAllowedError");
        }
        this.entries.delete(name);
    }

    async *keys() {
        yield* [...this.entries.keys()];
    }

    async *values() {
        yield* [...this.entries.values()];
    }

    /**
     * @param {string} name
     * @param {{create?: boolean} | undefined} options
     * @param {typeof Folder | typeof File} kind
     */
    #get(name, options, kind) {
        if (!this.entries.has(name)) {
            if (!options?.create) {
                throw new DOMException(name, "NotFoundError");
            }
            this.entries.set(name, new kind(this.storage));
        }
        return this.entries.get(name);
    }
}

class File {
    kind = "file";
    data = new Uint8Array();
    locked = false;
    /** Counts writes rather than time. */
    changed = 0;

    /** @param {FakeStorage} storage */
    constructor(storage) {
        this.storage = storage;
    }

    get used() {
        return this.data.length;
    }

    async getFile() {
        const data = this.data.slice();
        return {
            size: data.length,
            lastModified: this.changed,
            arrayBuffer: async () => data.buffer,
            text: async () => new TextDecoder().decode(data),
        };
    }

    async createSyncAccessHandle() {
        if (this.locked) {
            throw new DOMException("open elsewhere", "NoModificationAllowedError");
        }
        this.locked = true;
        return {
            /** @param {number} size */
            truncate: (size) => {
                this.data = this.data.slice(0, size);
            },
            /** @param {Uint8Array} data @param {{at: number}} options */
            write: (data, { at }) => {
                const room = Math.min(data.length, this.storage.killAfter);
                if (this.storage.used + room > this.storage.quota) {
                    throw new DOMException("full", "QuotaExceededError");
                }
                const whole = new Uint8Array(Math.max(this.data.length, at + room));
                whole.set(this.data);
                whole.set(data.subarray(0, room), at);
                this.data = whole;
                this.changed = ++this.storage.writes;
                this.storage.killAfter -= room;
                if (room < data.length) {
                    throw new Killed();
                }
                return room;
            },
            flush: () => {},
            close: () => {
                this.locked = false;
            },
        };
    }
}
