import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { Store } from "../../../wgllm/web/store.js";
import { FakeStorage } from "./fake_storage.js";

/** @param {number} n @param {number} size */
function piece(n, size = 100) {
    const data = new Uint8Array(size).fill(n);
    return { data, size, sha256: createHash("sha256").update(data).digest("hex") };
}

/** @param {FakeStorage} storage */
async function opened(storage) {
    const store = await Store.open(/** @type {any} */ (storage));
    assert.ok(store);
    return store;
}

test("pieces are there again after a reload", async () => {
    const storage = new FakeStorage();
    const [a, b] = [piece(1), piece(2, 8)];
    const store = await opened(storage);
    await store.write(a.sha256, a.data);
    await store.keep("model", [a]);
    const again = await opened(storage);
    assert.deepEqual(await again.read(a), a.data);
    assert.ok(await again.has(a));
    assert.equal(await again.read(b), null);
    assert.ok(!(await again.has(b)));
    assert.equal(await again.read({ ...a, size: 99 }), null);
    assert.deepEqual(await again.models(), [{ id: "model", bytes: 100 }]);
    assert.equal(store.problem, null);
});

test("a tab that is killed at any byte leaves no piece that looks whole, and the next one stores it", async () => {
    const a = piece(3, 40);
    const whole = new FakeStorage();
    await (await opened(whole)).write(a.sha256, a.data);
    assert.ok(whole.used > 40);
    for (let bytes = 0; bytes < whole.used; bytes++) {
        const storage = new FakeStorage();
        storage.killAfter = bytes;
        // What the dying tab does after the kill must not count: its store is thrown away with its locks.
        const dying = await opened(storage);
        dying.write(a.sha256, a.data).catch(() => {});
        storage.root.removeEntry = async () => {};
        await new Promise((resolve) => {
            setImmediate(resolve);
        });
        const store = await opened(storage);
        assert.equal(await store.read(a), null, `${bytes} bytes`);
        storage.killAfter = Infinity;
        await store.write(a.sha256, a.data);
        assert.deepEqual(await store.read(a), a.data);
    }
});

test("without room the page goes on, says so, and leaves nothing half", async () => {
    const storage = new FakeStorage({ quota: 250 });
    const store = await opened(storage);
    const [a, b, c] = [piece(1), piece(2, 150), piece(3, 10)];
    await store.write(a.sha256, a.data);
    await store.write(b.sha256, b.data);
    await store.write(c.sha256, c.data);
    assert.match(store.problem ?? "", /no room/);
    assert.ok(await store.has(a));
    assert.ok(!(await store.has(b)) && !(await store.has(c)));
    assert.ok((await store.bytes()) < 150);
});

test("a piece that another tab is writing is left to it", async () => {
    const storage = new FakeStorage();
    const a = piece(1);
    const root = /** @type {any} */ (storage.root);
    const outer = await root.getDirectoryHandle("wgllm", { create: true });
    const folder = await outer.getDirectoryHandle("pieces", { create: true });
    await (await folder.getFileHandle(a.sha256, { create: true })).createSyncAccessHandle();
    const store = await opened(storage);
    await store.write(a.sha256, a.data);
    assert.equal(store.problem, null);
    assert.equal(await store.read(a), null);
});

test("a model is deleted without the pieces of others", async () => {
    const store = await opened(new FakeStorage());
    const [a, b, c] = [piece(1), piece(2), piece(3)];
    for (const { sha256, data } of [a, b, c]) {
        await store.write(sha256, data);
    }
    await store.keep("one", [a, b]);
    for (const { sha256, data } of [b, c]) {
        await store.write(sha256, data);
    }
    await store.keep("two/../ü", [b, c]);
    assert.ok(!(await store.has({ ...c, size: 99 })));
    await store.remove("one");
    assert.deepEqual(await Promise.all([a, b, c].map((each) => store.has(each))), [false, true, true]);
    assert.deepEqual(await store.models(), [{ id: "two/../ü", bytes: 200 }]);
    await store.clear();
    assert.equal(await store.bytes(), 0);
    assert.deepEqual(await store.models(), []);
});

test("what a model no longer has is deleted when it is kept anew", async () => {
    const store = await opened(new FakeStorage());
    const [a, b] = [piece(1), piece(2)];
    for (const { sha256, data } of [a, b]) {
        await store.write(sha256, data);
    }
    await store.keep("one", [a, b]);
    await store.keep("one", [b]);
    assert.deepEqual(await Promise.all([a, b].map((each) => store.has(each))), [false, true]);
});

test("an index that was cut off counts for nothing", async () => {
    const storage = new FakeStorage();
    const store = await opened(storage);
    const a = piece(1);
    await store.write(a.sha256, a.data);
    storage.killAfter = 20;
    await store.keep("one", [a]);
    assert.deepEqual(await store.models(), []);
    storage.killAfter = Infinity;
    await (await opened(storage)).keep("one", [a]);
    assert.equal((await store.models()).length, 1);
});

test("where there is no storage there is no store", async () => {
    assert.equal(await Store.open(undefined), null);
    assert.equal(await Store.open(/** @type {any} */ ({})), null);
    const refuses = {
        getDirectory: async () => Promise.reject(new DOMException("private", "SecurityError")),
    };
    assert.equal(await Store.open(/** @type {any} */ (refuses)), null);
});

test("without room the models that were loaded longest ago go first, and no more of them than must", async () => {
    const storage = new FakeStorage();
    const old = await opened(storage);
    for (const [id, n] of /** @type {[string, number][]} */ ([
        ["second", 2],
        ["mine", 3],
        ["first", 1],
        ["second", 2],
    ])) {
        const { sha256, data } = piece(n, 1000);
        await old.write(sha256, data);
        await old.keep(id, [piece(n, 1000)]);
    }
    // A load that was cut off has left a piece, and mine has grown.
    await old.write(piece(9, 10).sha256, piece(9, 10).data);
    storage.quota = storage.used + 100;
    const store = await opened(storage);
    await store.begin("mine");
    const [a, b] = [piece(4, 400), piece(5, 400)];
    await Promise.all([store.write(a.sha256, a.data), store.write(b.sha256, b.data)]);
    assert.equal(store.problem, null);
    await store.keep("mine", [piece(3, 1000), a, b]);
    assert.deepEqual(
        (await store.models()).sort((one, other) => one.id.localeCompare(other.id)),
        [
            { id: "mine", bytes: 1800 },
            { id: "second", bytes: 1000 },
        ],
    );
    assert.equal(await store.read(piece(9, 10)), null);
});

test("a model that is larger than all the room takes that of others, and what of it is kept is known", async () => {
    const storage = new FakeStorage();
    const store = await opened(storage);
    const [other, a, b] = [piece(1, 1000), piece(2, 1000), piece(3, 2000)];
    await store.keep("mine", []);
    await store.write(other.sha256, other.data);
    await store.keep("other", [other]);
    storage.quota = storage.used + 500;
    await store.begin("mine");
    await store.write(a.sha256, a.data);
    await store.write(b.sha256, b.data);
    assert.match(store.problem ?? "", /no room/);
    assert.deepEqual(await store.models(), [{ id: "mine", bytes: 0 }]);
    storage.quota += 100;
    await store.keep("mine", [a, b]);
    assert.deepEqual(await store.models(), [{ id: "mine", bytes: 1000 }]);
    assert.equal((await store.stored()).bytes, 1000);
});
