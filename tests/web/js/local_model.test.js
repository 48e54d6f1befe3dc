import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { ModelError } from "../../../wgllm/web/errors.js";
import { LocalModel } from "../../../wgllm/web/local_model.js";
import { FakeWorker } from "./fake_worker.js";

Object.assign(globalThis, { Worker: FakeWorker });

const SAMPLING = { temperature: 0, topK: 40, topP: 1, minP: 0, seed: null, maxTokens: null };
const FACTS = { ctxSize: 64, plan: "the plan" };

/** A server's answers to chat_tokens, and what the visitor's key is. */
class FakeApi {
    settings = { base: "http://127.0.0.1/", /** @type {string | null} */ key: null };
    /** @type {any[]} */ asked = [];
    /** @type {() => Promise<any>} */ answer = async () => ({ tokens: [1, 2] });

    /** @param {string} path @param {any} options */
    async json(path, { json }) {
        this.asked.push(json);
        return this.answer();
    }
}

/** @param {any} request @param {FakeWorker} worker */
function works(request, worker) {
    const { id, type } = request;
    if (type === "load") {
        worker.say({ type: "loaded", id, facts: FACTS });
    } else if (type === "generate") {
        worker.say({ type: "events", id, events: [{ type: "text", text: "said", token: 5 }] });
        worker.say({ type: "ended", id });
    } else {
        worker.say({ type: "ended", id });
    }
}

beforeEach(() => {
    FakeWorker.answer = works;
});

async function loaded() {
    const api = new FakeApi();
    const model = new LocalModel(/** @type {any} */ (api));
    await model.load();
    return { api, model, worker: FakeWorker.last };
}

/** @param {LocalModel} model */
async function reply(model) {
    const events = [];
    for await (const event of model.generate([{ role: "user", content: "Hi" }], SAMPLING)) {
        events.push(event);
    }
    return events;
}

/** @param {Promise<unknown>} work @returns {Promise<ModelError>} */
async function failure(work) {
    const error = await work.then(
        () => null,
        (reason) => reason,
    );
    assert.ok(error instanceof ModelError, String(error));
    return error;
}

const otherModel = () => new ModelError("request", "restarted", { code: "other_model" });

test("tokens are asked for the loaded plan, which a restarted server is told again", async () => {
    const { api, model, worker } = await loaded();
    let known = false;
    api.answer = async () => {
        if (!known) {
            known = true;
            throw otherModel();
        }
        return { tokens: [1, 2] };
    };
    assert.equal((await reply(model)).length, 1);
    assert.deepEqual(
        api.asked.map(({ plan }) => plan),
        ["the plan", "the plan"],
    );
    assert.deepEqual(
        worker.asked.map(({ type }) => type),
        ["load", "renew", "generate"],
    );
});

test("another model's tokens never reach the card", async () => {
    const { api, model, worker } = await loaded();
    api.answer = async () => {
        throw otherModel();
    };
    FakeWorker.answer = ({ id, type }, to) =>
        to.say(
            type === "renew"
                ? { type: "failed", id, error: { kind: "other-model", message: "another" } }
                : { type: "ended", id },
        );
    assert.equal((await failure(reply(model))).kind, "other-model");
    assert.ok(worker.asked.every(({ type }) => type !== "generate"));
    // A server that does not know the plan even then can't have us ask for ever.
    FakeWorker.answer = works;
    assert.equal((await failure(reply(model))).code, "other_model");
    assert.equal(api.asked.length, 3);
});

test("a card that is lost while the tokens are fetched is told as that", async () => {
    const { api, model, worker } = await loaded();
    /** @type {ModelError[]} */
    const told = [];
    model.onLost = (error) => {
        told.push(error);
        model.close(); // as the page does
    };
    api.answer = async () => {
        worker.say({ type: "lost", error: { kind: "lost", message: "the driver was restarted" } });
        return { tokens: [1] };
    };
    const error = await failure(reply(model));
    assert.deepEqual([error.kind, error.message], ["lost", "the driver was restarted"]);
    assert.deepEqual(told, [error]);
    assert.ok(worker.ended);
});

test("a worker that fails is told, whether it works or not, and is the page's fault", async () => {
    for (const during of ["idle", "load", "generate"]) {
        const model = new LocalModel(/** @type {any} */ (new FakeApi()));
        /** @type {string[]} */
        const told = [];
        model.onLost = ({ kind }) => told.push(kind);
        FakeWorker.answer = (request, worker) =>
            request.type === during ? worker.fail("a fault") : works(request, worker);
        const work = model.load().then(() => reply(model));
        if (during === "idle") {
            await work;
            FakeWorker.last.fail("a fault");
        } else {
            assert.deepEqual((await failure(work)).kind, "page");
        }
        assert.deepEqual(told, ["page"], during);
    }
});

test("a key that changes holds for what is loaded", async () => {
    const { api, model, worker } = await loaded();
    api.settings = { ...api.settings, key: "new" };
    await reply(model);
    assert.equal(worker.asked.at(-1).key, "new");
});

test("the browser is asked to keep weights only where some were fetched", async (context) => {
    let asked = 0;
    const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
    Object.defineProperty(globalThis, "navigator", {
        configurable: true,
        value: { storage: { persist: async () => asked++ } },
    });
    context.after(() => {
        delete (/** @type {any} */ (globalThis).navigator);
        if (before) {
            Object.defineProperty(globalThis, "navigator", before);
        }
    });
    for (const [cached, expected] of [
        [10, 0],
        [9, 1],
    ]) {
        FakeWorker.answer = (request, worker) => {
            const progress = { stage: "weights", done: 10, total: 10, cached };
            worker.say({ type: "progress", id: request.id, progress });
            works(request, worker);
        };
        await loaded();
        assert.equal(asked, expected);
    }
});
