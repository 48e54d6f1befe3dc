import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { ModelError } from "../../../wgllm/web/errors.js";
import { loadWeights } from "../../../wgllm/web/weights.js";

const PIECE = 6 << 20;
const FILE = new Uint8Array(PIECE * 4 + 40).map((_, i) => (i * 2654435761) >>> 24);

/** @param {Uint8Array} data */
function hash(data) {
    return createHash("sha256").update(data).digest("hex");
}

function pieces() {
    const made = [];
    for (let at = 0; at < FILE.length; at += PIECE) {
        const data = FILE.subarray(at, at + PIECE);
        made.push({ at, size: data.length, sha256: hash(data) });
    }
    return made;
}

const PIECES = pieces();

/** A server of FILE whose faults are functions of a request's number that change its answer. */
class FakeServer {
    /** @type {string[]} */ ranges = [];
    listings = 0;
    most = 0;
    #open = 0;

    /**
     * @param {object} faults
     * @param {(n: number) => string[] | Error} [faults.list]
     * @param {(n: number, data: Uint8Array, range: string) => Uint8Array | Error} [faults.part]
     */
    constructor({ list = () => [], part = (_, data) => data } = {}) {
        this.faults = { list, part };
    }

    /** @param {string} path @param {{headers?: Record<string, string>}} options */
    async fetch(path, { headers = {} } = {}) {
        if (path.endsWith("/pieces")) {
            const told = this.faults.list(this.listings++);
            if (told instanceof Error) {
                throw told;
            }
            const lines = [...PIECES, { done: true, size: FILE.length }].map((line) => JSON.stringify(line));
            return new Response(`${(told.length > 0 ? told : lines).join("\n")}\n`);
        }
        const [first, last] = headers.Range.replace("bytes=", "").split("-").map(Number);
        this.most = Math.max(this.most, ++this.#open);
        await new Promise((resolve) => {
            setTimeout(resolve);
        });
        this.#open--;
        const sent = this.faults.part(this.ranges.length, FILE.slice(first, last + 1), headers.Range);
        this.ranges.push(headers.Range);
        if (sent instanceof Error) {
            throw sent;
        }
        return new Response(/** @type {any} */ (sent), { status: 206 });
    }
}

/** @param {Iterable<[string, Uint8Array<ArrayBuffer>]>} held */
function storeOf(held = []) {
    const files = new Map(held);
    return {
        files,
        /** @param {{sha256: string}} piece */
        has: async ({ sha256 }) => files.has(sha256),
        /** @param {{sha256: string}} piece */
        read: async ({ sha256 }) => files.get(sha256) ?? null,
        /** @param {string} sha256 @param {Uint8Array<ArrayBuffer>} data */
        write: async (sha256, data) => {
            files.set(sha256, data.slice());
        },
    };
}

/** @param {FakeServer} server @param {ReturnType<typeof storeOf> | null} store */
async function load(server, store = storeOf(), signal = new AbortController().signal) {
    const made = new Uint8Array(FILE.length);
    /** @type {number[][]} */
    const progress = [];
    const listed = await loadWeights({
        api: server,
        path: "plan",
        total: FILE.length,
        store,
        signal,
        pauseMs: 1,
        write: async (at, data) => made.set(data, at),
        onProgress: (...told) => progress.push(told),
    });
    assert.ok(Buffer.compare(made, FILE) === 0);
    assert.deepEqual(listed, PIECES);
    return progress;
}

test("all comes from the server, in few requests and two at a time, and goes to the store", async () => {
    const server = new FakeServer();
    const store = storeOf();
    const progress = await load(server, store);
    assert.equal(server.ranges.length, 2);
    assert.equal(server.most, 2);
    assert.equal(store.files.size, PIECES.length);
    assert.deepEqual(progress.at(-1), [FILE.length, 0]);
});

test("nothing is fetched that the store has; the others are", async () => {
    const store = storeOf(PIECES.map(({ at, size, sha256 }) => [sha256, FILE.slice(at, at + size)]));
    const full = new FakeServer();
    assert.deepEqual((await load(full, store)).at(-1), [FILE.length, FILE.length]);
    assert.deepEqual(full.ranges, []);
    store.files.delete(PIECES[1].sha256);
    store.files.delete(PIECES[2].sha256);
    const some = new FakeServer();
    assert.deepEqual((await load(some, store)).at(-1), [FILE.length, FILE.length - 2 * PIECE]);
    assert.deepEqual(some.ranges, [`bytes=${PIECE}-${3 * PIECE - 1}`]);
});

test("a piece of the store that is not what it was is fetched again", async () => {
    const store = storeOf([[PIECES[1].sha256, FILE.slice(0, PIECE)]]);
    const server = new FakeServer();
    await load(server, store);
    assert.ok(server.ranges.includes(`bytes=${PIECE}-${2 * PIECE - 1}`));
    assert.equal(hash(/** @type {any} */ (store.files.get(PIECES[1].sha256))), PIECES[1].sha256);
});

test("without a store it all comes from the server", async () => {
    await load(new FakeServer(), null);
});

test("a connection that breaks is tried again from where it broke", async () => {
    const server = new FakeServer({
        list: (n) => (n === 0 ? PIECES.slice(0, 2).map((each) => JSON.stringify(each)) : []),
        part: (n, data) => (n === 0 ? data.subarray(0, PIECE + 5) : data),
    });
    await load(server);
    assert.equal(server.listings, 2);
    assert.ok(server.ranges.includes(`bytes=${PIECE}-${2 * PIECE - 1}`), server.ranges.join());
});

test("damaged bytes are fetched again", async () => {
    const damaged = (/** @type {Uint8Array} */ data) => data.map((byte, i) => (i === 7 ? byte ^ 1 : byte));
    const server = new FakeServer({ part: (n, data) => (n === 0 ? damaged(data) : data) });
    const store = storeOf();
    await load(server, store);
    for (const [sha256, data] of store.files) {
        assert.equal(hash(data), sha256);
    }
});

test("what does not pass is said after three retries, what can't at once", async () => {
    const gone = new FakeServer({ part: () => new ModelError("network", "gone") });
    await assert.rejects(load(gone), { kind: "network", message: "gone" });
    assert.ok(gone.ranges.length >= 4 && gone.ranges.length <= 8);
    for (const kind of /** @type {const} */ (["key", "request", "server"])) {
        const refuses = new FakeServer({ list: () => new ModelError(kind, "no") });
        await assert.rejects(load(refuses), { kind, message: "no" });
        assert.equal(refuses.listings, 1);
    }
});

test("a listing that makes no sense is refused", async () => {
    const [first, second] = PIECES;
    const done = { done: true, size: FILE.length };
    for (const list of [
        [done],
        [second, done],
        [{ ...first, size: 0 }],
        [{ ...first, size: 6 }],
        [{ ...first, sha256: "../a" }],
        [{ error: "no room" }],
        [...PIECES, { ...done, size: 1 }],
    ]) {
        const server = new FakeServer({ list: () => list.map((each) => JSON.stringify(each)) });
        await assert.rejects(load(server), { kind: "server" }, JSON.stringify(list));
    }
});

test("an abort ends it with the abort", async () => {
    const abort = new AbortController();
    const server = new FakeServer({
        part: (n, data) => {
            abort.abort();
            return data;
        },
    });
    await assert.rejects(load(server, storeOf(), abort.signal), { name: "AbortError" });
});

test("a connection that breaks again and again is taken up as long as something comes", async () => {
    const cut = (/** @type {number} */ n) =>
        PIECES.slice(0, Math.ceil((n + 1) / 2)).map((each) => JSON.stringify(each));
    const server = new FakeServer({
        // Every other listing brings one piece more, every other request of the same weights the first of them.
        list: (n) => (n < 2 * PIECES.length ? cut(n) : []),
    });
    await load(server);
    assert.equal(server.listings, 2 * PIECES.length + 1);
    /** @type {Set<string>} */
    const asked = new Set();
    const lame = new FakeServer({
        part: (_, data, range) => {
            const again = asked.has(range);
            asked.add(range);
            return data.slice(0, again ? PIECE : 0);
        },
    });
    await load(lame);
    assert.equal(lame.ranges.length, 2 * PIECES.length);
});

test("a connection that brings nothing more is given up", async () => {
    const server = new FakeServer({ list: () => [JSON.stringify(PIECES[0])] });
    await assert.rejects(load(server), { kind: "network" });
    assert.equal(server.listings, 4);
});
