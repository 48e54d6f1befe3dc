/**
 * Weights in the browser's own storage (OPFS), which a reload finds again. Pieces are files named by their SHA-256; an
 * index for each model says which are its own. Where there is no storage, or no room, the page goes on without.
 *
 * A piece's file ends in a mark that is written after the bytes have reached the disk: one that was cut off, by a tab
 * that was closed or a machine that lost power, has none and does not count.
 */

/**
 * @typedef {{sha256: string, size: number}} Piece
 * @typedef {{id: string, pieces: Record<string, number>}} Index Sizes by SHA-256.
 * @typedef {{id: string, bytes: number}} StoredModel
 * @typedef {{models: StoredModel[], bytes: number}} Stored `bytes`: of all files, those of no model included.
 */

const FOLDER = "wgllm";
const MARK = new TextEncoder().encode("wgllm-whole-1\n\0\0");

export class Store {
    #pieces;
    #models;
    /** Why nothing more is stored, in one line. @type {string | null} */
    problem = null;
    /** The model that is being stored. */
    #model = "";
    /** Its pieces, as far as they are known. @type {Set<string>} */ #own = new Set();
    /** @type {Promise<boolean> | null} */ #freeing = null;

    /**
     * Use `Store.open`.
     * @param {FileSystemDirectoryHandle} pieces
     * @param {FileSystemDirectoryHandle} models
     */
    constructor(pieces, models) {
        this.#pieces = pieces;
        this.#models = models;
    }

    /**
     * The store, or null where the browser has none, as in some private windows.
     * @param {{getDirectory?: () => Promise<FileSystemDirectoryHandle>} | undefined} [storage]
     * @returns {Promise<Store | null>}
     */
    static async open(storage = globalThis.navigator?.storage) {
        try {
            if (storage?.getDirectory === undefined) {
                return null;
            }
            const folder = await (await storage.getDirectory()).getDirectoryHandle(FOLDER, { create: true });
            const [pieces, models] = await Promise.all(
                ["pieces", "models"].map((name) => folder.getDirectoryHandle(name, { create: true })),
            );
            return new Store(pieces, models);
        } catch {
            return null;
        }
    }

    /**
     * The bytes of a piece, or null if it is not there whole. Its hash is for the caller to look at.
     * @param {Piece} piece
     */
    async read({ sha256, size }) {
        try {
            const file = await (await this.#pieces.getFileHandle(sha256)).getFile();
            if (file.size !== size + MARK.length) {
                return null;
            }
            const bytes = new Uint8Array(await file.arrayBuffer());
            const mark = bytes.subarray(size);
            return mark.every((byte, i) => byte === MARK[i]) ? bytes.subarray(0, size) : null;
        } catch {
            return null;
        }
    }

    /** Whether a piece seems to be there, without reading it. @param {Piece} piece */
    async has({ sha256, size }) {
        try {
            const file = await (await this.#pieces.getFileHandle(sha256)).getFile();
            const whole = file.size === size + MARK.length;
            if (whole) {
                this.#own.add(sha256);
            }
            return whole;
        } catch {
            return false;
        }
    }

    /** What is asked for and written from now on is this model's, for which others make room. @param {string} id */
    async begin(id) {
        this.#model = id;
        const indexes = await this.#indexes().catch(() => []);
        const known = indexes.find((index) => index.id === id)?.pieces ?? {};
        this.#own = new Set(Object.keys(known));
    }

    /**
     * Keeps a piece, if that can be; where there is no room, instead of other models'. Only in a worker.
     * @param {string} sha256
     * @param {Uint8Array<ArrayBuffer>} data
     */
    async write(sha256, data) {
        this.#own.add(sha256);
        for (let room = true; this.problem === null;) {
            const error = await this.#put(sha256, data);
            if (error === null || isLocked(error)) {
                return; // another tab is writing it
            }
            if (!isFull(error) || !room) {
                this.problem = problemOf(error);
                return;
            }
            room = await this.#makeRoom();
        }
    }

    /** Deletes the model that was loaded longest ago. Whether there was one beside the one that is being stored. */
    #makeRoom() {
        // One at a time: for all that had no room at once.
        this.#freeing ??= this.#deleteOldest()
            .catch(() => false)
            .finally(() => {
                this.#freeing = null;
            });
        return this.#freeing;
    }

    async #deleteOldest() {
        const others = (await this.#indexes()).filter(({ id }) => id !== this.#model);
        const [oldest] = others.sort((a, b) => a.time - b.time);
        if (oldest !== undefined) {
            await this.#models.removeEntry(await nameOf(oldest.id));
        }
        const before = await this.bytes();
        await this.#sweep(this.#own);
        return oldest !== undefined || (await this.bytes()) < before;
    }

    /**
     * @param {string} sha256
     * @param {Uint8Array<ArrayBuffer>} data
     * @returns {Promise<unknown>} What went wrong, or null.
     */
    async #put(sha256, data) {
        let access = null;
        let created = false;
        try {
            const handle = await this.#pieces.getFileHandle(sha256, { create: true });
            created = true;
            access = await handle.createSyncAccessHandle();
            access.truncate(0);
            writeAll(access, data, 0);
            access.flush();
            writeAll(access, MARK, data.length);
            access.close();
            return null;
        } catch (error) {
            access?.close();
            if (created && !isLocked(error)) {
                await this.#pieces.removeEntry(sha256).catch(() => {});
            }
            return error;
        }
    }

    /**
     * A model has these pieces, as far as they could be stored, and no others: those that no model has any more are
     * deleted.
     * @param {string} id
     * @param {Piece[]} pieces
     */
    async keep(id, pieces) {
        try {
            const held = await Promise.all(pieces.map((piece) => this.has(piece)));
            const stored = pieces.filter((_, i) => held[i]);
            const index = {
                id,
                pieces: Object.fromEntries(stored.map(({ sha256, size }) => [sha256, size])),
            };
            const handle = await this.#models.getFileHandle(await nameOf(id), { create: true });
            const access = await handle.createSyncAccessHandle();
            try {
                access.truncate(0);
                writeAll(access, new TextEncoder().encode(JSON.stringify(index)), 0);
                access.flush();
            } finally {
                access.close();
            }
            await this.#sweep();
        } catch (error) {
            this.problem ??= problemOf(error);
        }
    }

    /** The models whose weights are kept. @returns {Promise<StoredModel[]>} */
    async models() {
        const found = await this.#indexes();
        return found.map(({ id, pieces }) => ({
            id,
            bytes: Object.values(pieces).reduce((sum, size) => sum + size, 0),
        }));
    }

    /** @returns {Promise<Stored>} */
    async stored() {
        return { models: await this.models(), bytes: await this.bytes() };
    }

    /** Bytes of all pieces, of models and of what has no model yet. */
    async bytes() {
        let sum = 0;
        for await (const handle of this.#pieces.values()) {
            const size = handle.kind === "file" ? ((await handle.getFile().catch(() => null))?.size ?? 0) : 0;
            sum += Math.max(0, size - MARK.length);
        }
        return sum;
    }

    /** Deletes a model's pieces that no other has. @param {string} id */
    async remove(id) {
        await this.#models.removeEntry(await nameOf(id)).catch(() => {});
        await this.#sweep();
    }

    /** Deletes everything. */
    async clear() {
        for await (const name of this.#models.keys()) {
            await this.#models.removeEntry(name).catch(() => {});
        }
        await this.#sweep();
    }

    /** Deletes pieces that no index names. @param {Iterable<string>} [but] Nor these. */
    async #sweep(but = []) {
        const used = new Set((await this.#indexes()).flatMap(({ pieces }) => Object.keys(pieces)));
        for (const sha256 of but) {
            used.add(sha256);
        }
        /** @type {string[]} */
        const names = [];
        for await (const name of this.#pieces.keys()) {
            names.push(name);
        }
        for (const name of names.filter((each) => !used.has(each))) {
            await this.#pieces.removeEntry(name).catch(() => {}); // open in another tab
        }
    }

    /** Those that can be read, and when they were written. @returns {Promise<(Index & {time: number})[]>} */
    async #indexes() {
        /** @type {(Index & {time: number})[]} */
        const found = [];
        for await (const handle of this.#models.values()) {
            if (handle.kind === "file") {
                const index = await readIndex(handle);
                if (index !== null) {
                    found.push(index);
                }
            }
        }
        return found;
    }
}

/** @param {FileSystemFileHandle} handle @returns {Promise<(Index & {time: number}) | null>} */
async function readIndex(handle) {
    try {
        const file = await handle.getFile();
        const index = JSON.parse(await file.text());
        const whole =
            typeof index.id === "string" && typeof index.pieces === "object" && index.pieces !== null;
        return whole ? { id: index.id, pieces: index.pieces, time: file.lastModified } : null;
    } catch {
        return null; // cut off; the next load writes it anew
    }
}

/** @param {FileSystemSyncAccessHandle} access @param {Uint8Array<ArrayBuffer>} data @param {number} at */
function writeAll(access, data, at) {
    const written = access.write(data, { at });
    if (written !== data.length) {
        throw new DOMException("no room", "QuotaExceededError");
    }
}

/** A file's name for a model's id. @param {string} id */
async function nameOf(id) {
    return hexOf(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(id)));
}

/** @param {ArrayBuffer} bytes */
export function hexOf(bytes) {
    return Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {unknown} error */
function isLocked(error) {
    return error instanceof DOMException && error.name === "NoModificationAllowedError";
}

/** @param {unknown} error */
function isFull(error) {
    return error instanceof DOMException && error.name === "QuotaExceededError";
}

/** @param {unknown} error */
function problemOf(error) {
    if (isFull(error)) {
        return "the browser has no room to keep the weights: the next visit fetches them again";
    }
    const said = error instanceof Error ? error.message : String(error);
    return `the browser can't keep the weights: ${said.replace(/\s+/g, " ")}`;
}
