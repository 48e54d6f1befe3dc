/** The weights' way to the device: pieces from the browser's store, the others from the server. */

import { lines } from "./api.js";
import { ModelError } from "./errors.js";
import { PieceReader } from "./pieces.js";
import { hexOf } from "./store.js";

/**
 * @import { Api } from "./api.js"
 * @import { Store } from "./store.js"
 *
 * @typedef {{at: number, size: number, sha256: string}} Piece Bytes of the packed file.
 *
 * @typedef {object} Options
 * @property {Pick<Api, "fetch">} api
 * @property {string} path Of the plan on the server: `<path>/pieces` and `<path>/weights`.
 * @property {number} total Bytes of the packed file.
 * @property {Pick<Store, "has" | "read" | "write"> | null} store
 * @property {(at: number, data: Uint8Array<ArrayBuffer>) => Promise<void>} write To the device; in any order.
 * @property {(done: number, cached: number) => void} onProgress Bytes, and how many of them the store had.
 * @property {AbortSignal} signal
 * @property {number} [pauseMs] Before the first retry; it doubles.
 */

/** Missing pieces beside each other are fetched together up to this size. */
const REQUEST_BYTES = 16 << 20;

/** Requests for weights at a time. */
const REQUESTS = 2;

const RETRIES = 3;

/**
 * Writes all weights. Every piece's hash is looked at, wherever it comes from.
 * @param {Options} options
 * @returns {Promise<Piece[]>}
 */
export async function loadWeights(options) {
    const stop = new AbortController();
    const signal = AbortSignal.any([options.signal, stop.signal]);
    try {
        return await new Load({ ...options, signal }).run();
    } catch (error) {
        options.signal.throwIfAborted();
        throw error;
    } finally {
        stop.abort();
    }
}

class Load {
    #options;
    #lanes = new Lanes(REQUESTS);
    #done = 0;
    #cached = 0;

    /** @param {Options} options */
    constructor(options) {
        this.#options = options;
    }

    async run() {
        const { store } = this.#options;
        /** @type {Piece[]} */
        const all = [];
        /** @type {Piece[]} Missing ones beside each other. */
        const missing = [];
        const fetchMissing = async () => {
            const pieces = missing.splice(0);
            if (pieces.length > 0) {
                await this.#lanes.start(() => this.#fetch(pieces));
            }
        };
        for await (const piece of this.#listed()) {
            all.push(piece);
            if (store !== null && (await store.has(piece))) {
                await fetchMissing();
                await this.#lanes.start(() => this.#take(piece));
                continue;
            }
            if (bytesOf(missing) + piece.size > REQUEST_BYTES) {
                await fetchMissing();
            }
            missing.push(piece);
        }
        await fetchMissing();
        await this.#lanes.idle();
        return all;
    }

    /** The pieces in order, as the server tells them. @returns {AsyncGenerator<Piece, void, undefined>} */
    async *#listed() {
        const { api, path, total, signal } = this.#options;
        let end = 0;
        for (let attempt = 0; ; attempt++) {
            const before = end;
            try {
                for await (const line of lines(await api.fetch(`${path}/pieces`, { signal }), signal)) {
                    const { at, size, sha256, done, error } = parsed(line);
                    if (error !== undefined) {
                        throw new ModelError("server", String(error));
                    }
                    if (done) {
                        if (end !== total || size !== total) {
                            throw new ModelError(
                                "server",
                                `the server has ${end} of ${total} bytes of weights`,
                            );
                        }
                        return;
                    }
                    if (at < end) {
                        continue; // known before the connection broke
                    }
                    if (at !== end || !(size > 0) || size % 4 !== 0 || !/^[0-9a-f]{64}$/.test(sha256)) {
                        throw new ModelError("server", `the server's weights make no sense at byte ${end}`);
                    }
                    yield { at, size, sha256 };
                    end += size;
                }
                throw new ModelError("network", "the connection to the server broke");
            } catch (error) {
                attempt = end > before ? 0 : attempt; // it goes on, be it slowly
                await this.#retried(error, attempt);
            }
        }
    }

    /** A piece from the store; from the server where it is no longer what it was. @param {Piece} piece */
    async #take(piece) {
        const data = await this.#options.store?.read(piece);
        if (!data || (await hashOf(data)) !== piece.sha256) {
            await this.#fetch([piece]);
            return;
        }
        await this.#options.write(piece.at, data);
        this.#cached += piece.size;
        this.#count(piece);
    }

    /** Pieces beside each other from the server, and to the store. @param {Piece[]} pieces */
    async #fetch(pieces) {
        const left = [...pieces];
        for (let attempt = 0; left.length > 0; attempt++) {
            const before = left.length;
            try {
                await this.#fetchOnce(left);
            } catch (error) {
                attempt = left.length < before ? 0 : attempt;
                await this.#retried(error, attempt);
            }
        }
    }

    /** Takes from `left` what has come. @param {Piece[]} left */
    async #fetchOnce(left) {
        const { api, path, store, write, signal } = this.#options;
        const end = left[0].at + bytesOf(left);
        const headers = { Range: `bytes=${left[0].at}-${end - 1}` };
        const response = await api.fetch(`${path}/weights`, { headers, signal });
        if (response.status !== 206 || response.body === null) {
            throw new ModelError("server", "the server does not send parts of the weights");
        }
        const reader = new PieceReader(response.body);
        try {
            while (left.length > 0) {
                signal.throwIfAborted();
                const [{ at, size, sha256 }] = left;
                const data = await this.#read(reader, size);
                if (data.length < size) {
                    throw new ModelError("network", "the connection to the server broke");
                }
                if ((await hashOf(data)) !== sha256) {
                    throw new ModelError("network", "the weights came damaged: try again");
                }
                await write(at, data);
                await store?.write(sha256, data);
                const [piece] = left.splice(0, 1);
                this.#count(piece);
            }
        } finally {
            reader.close().catch(() => {});
        }
    }

    /** @param {PieceReader} reader @param {number} size */
    async #read(reader, size) {
        try {
            return await reader.read(size);
        } catch {
            this.#options.signal.throwIfAborted();
            throw new ModelError("network", "the connection to the server broke");
        }
    }

    /** @param {Piece} piece */
    #count({ size }) {
        this.#done += size;
        this.#options.onProgress(this.#done, this.#cached);
    }

    /**
     * Waits before another attempt; throws what can't be helped by one.
     * @param {unknown} error
     * @param {number} attempt
     */
    async #retried(error, attempt) {
        const { signal, pauseMs = 500 } = this.#options;
        signal.throwIfAborted();
        const passing = error instanceof ModelError && (error.kind === "network" || error.kind === "busy");
        if (!passing || attempt >= RETRIES) {
            throw error;
        }
        const ms = error.retryAfter === null ? pauseMs * 2 ** attempt : error.retryAfter * 1000;
        await new Promise((resolve) => {
            setTimeout(resolve, ms);
        });
        signal.throwIfAborted();
    }
}

/** Runs a few things at a time. */
class Lanes {
    #free;
    /** @type {Set<Promise<void>>} */ #running = new Set();
    /** @type {{error: unknown} | null} */ #failed = null;

    /** @param {number} count */
    constructor(count) {
        this.#free = count;
    }

    /**
     * Waits until `work` may start, and starts it. Throws what an earlier one has thrown.
     * @param {() => Promise<void>} work
     */
    async start(work) {
        while (this.#free === 0) {
            await Promise.race(this.#running);
        }
        this.#check();
        this.#free--;
        const running = work()
            .catch((error) => {
                this.#failed ??= { error };
            })
            .finally(() => {
                this.#free++;
                this.#running.delete(running);
            });
        this.#running.add(running);
    }

    async idle() {
        while (this.#running.size > 0) {
            await Promise.race(this.#running);
            this.#check();
        }
        this.#check();
    }

    #check() {
        if (this.#failed !== null) {
            throw this.#failed.error;
        }
    }
}

/** @param {Piece[]} pieces */
function bytesOf(pieces) {
    return pieces.reduce((sum, { size }) => sum + size, 0);
}

/** @param {Uint8Array<ArrayBuffer>} data */
async function hashOf(data) {
    return hexOf(await crypto.subtle.digest("SHA-256", data));
}

/** @param {string} line @returns {any} */
function parsed(line) {
    try {
        return JSON.parse(line);
    } catch {
        throw new ModelError("network", "the connection to the server broke");
    }
}
