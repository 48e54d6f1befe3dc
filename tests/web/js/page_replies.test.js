import assert from "node:assert/strict";
import test from "node:test";

import { ModelError } from "../../../wgllm/web/errors.js";
import { words } from "../../../wgllm/web/page/panel.js";
import { Reply, waitingFor } from "../../../wgllm/web/page/reply.js";
import { defaults, Kept, parsed, rangeOf, Settings } from "../../../wgllm/web/page/settings.js";
import { endsModel, explain, faultOf, REMEDIES } from "../../../wgllm/web/page/troubles.js";
import { Reading, requestOf, ServerModel } from "../../../wgllm/web/server_model.js";

const SAMPLING = { temperature: 0.7, topK: 40, topP: 0.9, minP: 0.05, seed: null, maxTokens: null };

/** Of an object only what is needed. @returns {any} */
const fake = (parts) => parts;

/** A reply of a model that does what `generate` does, with a clock that a test turns. */
function reply(generate) {
    const state = { now: 100, saves: [] };
    const message = fake({ id: "m", role: "assistant", content: "", state: "partial", version: 1 });
    const made = new Reply(message, {
        onUpdate: () => {},
        save: () => state.saves.push([state.now, message.content, message.state]),
        now: () => state.now,
    });
    const run = () =>
        made.run(
            async () => fake({ generate: (messages, sampling, { signal }) => generate(state, signal) }),
            [],
            SAMPLING,
        );
    return { made, message, state, run };
}

const text = (piece, token) => ({ type: "text", text: piece, token });
const end = (reason) => ({ type: "end", reason, stats: { generatedTokens: 2, contextUsed: 7 } });

test("a reply keeps its text, tokens and figures, and is saved about every second", async () => {
    const { made, message, state, run } = reply(async function* (state) {
        yield { type: "progress", stage: "prefill", done: 0, total: 5 };
        state.now += 0.5;
        yield text("He", 1);
        state.now += 0.6;
        yield text("", 2);
        state.now += 0.6;
        yield text("llo", 3);
        yield end("stop");
    });
    await run();
    assert.deepEqual([message.content, message.tokenIds, message.state], ["Hello", [1, 2, 3], "complete"]);
    assert.equal(message.stats.firstSeconds, 0.5);
    assert.deepEqual([made.live.tokens, made.live.contextUsed, made.live.stage], [3, 5, ""]);
    assert.deepEqual(
        state.saves.map(([, content, how]) => [content, how]),
        [
            ["He", "partial"],
            ["Hello", "complete"],
        ],
    );
});

test("the live context has the whole prompt, though most of it need not be read again", async () => {
    const { made, run } = reply(async function* () {
        yield { type: "progress", stage: "prefill", done: 0, total: 4, cached: 30 };
        yield text("Hi", 1);
    });
    await run();
    assert.equal(made.live.contextUsed, 34);
});

test("figures can be written as JSON, whatever the seed", async () => {
    const { message, run } = reply(async function* () {
        yield { type: "end", reason: "stop", stats: { generatedTokens: 0, seed: 2n ** 63n } };
    });
    await run();
    assert.equal(JSON.parse(JSON.stringify(message.stats)).seed, "9223372036854775808");
});

test("stopping keeps the text, whether the model ends by itself or throws", async () => {
    for (const throws of [false, true]) {
        const { made, message, run } = reply(async function* (state, signal) {
            yield text("kept", 1);
            made.stop();
            if (throws) {
                signal.throwIfAborted();
            }
            yield end("cancelled");
        });
        await run();
        assert.deepEqual([message.content, message.state, message.error], ["kept", "stopped", undefined]);
    }
});

test("an error in the middle leaves the text and says why", async () => {
    const { message, run } = reply(async function* () {
        yield text("half", 1);
        throw new ModelError("lost", "the device is gone");
    });
    await run();
    assert.deepEqual(
        [message.content, message.state, message.error],
        ["half", "error", { kind: "lost", message: "the device is gone" }],
    );
});

test("every kind of error has words and a way on", () => {
    const kinds = [
        "no-webgpu",
        "insecure",
        "no-adapter",
        "too-large",
        "out-of-memory",
        "lost",
        "shader",
        "numbers",
        "context",
        "request",
        "network",
        "key",
        "busy",
        "server",
        "other-model",
    ];
    for (const kind of kinds) {
        for (const where of /** @type {const} */ (["gpu", "server"])) {
            const { title, short, remedies } = explain({ kind, message: "" }, where);
            assert.ok(short.length > 4 && short.length < 24, kind);
            assert.ok(title && title !== explain({ kind: "page", message: "" }, where).title, kind);
            assert.ok(remedies.every((remedy) => remedy in REMEDIES));
            assert.ok(where === "gpu" ? remedies.length > 0 : !remedies.includes("server"), kind);
        }
    }
    assert.match(explain({ kind: "insecure", message: "" }, "gpu").text, /--tls/);
    assert.notEqual(
        explain({ kind: "network", message: "" }, "gpu").text,
        explain({ kind: "network", message: "" }, "server").text,
    );
    assert.equal(explain({ kind: "constructor", message: "" }, "gpu").title, "Something in this page failed");
    assert.deepEqual(faultOf(new TypeError("a\n b")), { kind: "page", message: "a b" });
    const shorts = ["network", "lost", "no-adapter"].map(
        (kind) => explain({ kind, message: "" }, "gpu").short,
    );
    assert.deepEqual(shorts, ["Server not reachable", "Card lost", "No graphics card"]);
    assert.ok(endsModel({ kind: "other-model", message: "" }));
    assert.ok(endsModel({ kind: "lost", message: "" }) && !endsModel({ kind: "network", message: "" }));
});

test("settings keep only what differs, and nothing that is out of range", () => {
    const map = new Map();
    const storage = fake({
        getItem: (name) => map.get(name) ?? null,
        setItem: (name, value) => map.set(name, value),
        removeItem: (name) => map.delete(name),
    });
    const settings = new Settings(new Kept(storage));
    settings.useDefaults(defaults({ temperature: 0.7, top_k: 40, top_p: fake("x"), min_p: NaN }));
    assert.deepEqual(settings.sampling, {
        temperature: 0.7,
        topK: 40,
        topP: 0.95,
        minP: 0.05,
        seed: null,
        maxTokens: null,
    });
    settings.set("temperature", 0);
    settings.set("seed", 7);
    settings.set("topK", 40);
    assert.equal(map.get("wgllm.sampling"), '{"temperature":0,"seed":7}');
    map.set("wgllm.sampling", '{"temperature":99,"seed":7,"minP":"1","__proto__":{"topK":3}}');
    assert.deepEqual(new Settings(new Kept(storage)).sampling, {
        temperature: 0.8,
        topK: 40,
        topP: 0.95,
        minP: 0.05,
        seed: 7,
        maxTokens: null,
    });
    settings.useDefaults({ ...SAMPLING, topK: 0 });
    assert.deepEqual([settings.shown("topK", "gpu"), settings.shown("topK", "server")], [128, 0]);
    settings.set("topK", 500); // what was chosen is shown as it is
    assert.equal(settings.shown("topK", "gpu"), 500);
    map.set("wgllm.sampling", "{");
    assert.equal(new Settings(new Kept(storage)).sampling.seed, null);
    assert.equal(new Settings(new Kept(null)).theme, "auto");
});

test("what is typed is a number of the range, or refused", () => {
    assert.deepEqual(
        ["0,7", " 1 ", "-1", "x", "", "1e999", "6"].map((typed) => parsed("temperature", typed)),
        [0.7, 1, undefined, undefined, undefined, undefined, undefined],
    );
    assert.deepEqual(
        ["", "3", "3.5", "0", "1,000", "0x10", "1e3", "+5"].map((typed) => parsed("maxTokens", typed)),
        [null, 3, ...Array(6).fill(undefined)],
    );
    // One that some write for a thousand and others for one.
    assert.deepEqual(
        ["1,000", "1.234", "0,950", ".5", "2,", "0x1", "Infinity", "1e-7"].map((typed) =>
            parsed("temperature", typed),
        ),
        [undefined, 1.234, 0.95, 0.5, 2, undefined, undefined, 1e-7],
    );
    assert.deepEqual(
        ["0", "128", "129", "1000"].map((typed) => [
            parsed("topK", typed, "gpu"),
            parsed("topK", typed, "server"),
        ]),
        [
            [undefined, 0],
            [128, 128],
            [undefined, 129],
            [undefined, 1000],
        ],
    );
    assert.deepEqual(rangeOf("topK", "gpu").max, 128);
    assert.deepEqual(rangeOf("topK", "server").max, 1000); // whatever the card's is
});

test("how loading goes, in words", () => {
    assert.deepEqual(words(null), ["Planning for this card…", ""]);
    const weights = fake({ stage: "weights", done: 50e6, total: 100e6, cached: 20e6, speed: 25e6 });
    assert.deepEqual(words(weights), [
        "Loading weights…",
        "50.0 MB of 100 MB · 25.0 MB/s · 2 s left · 20.0 MB were stored here",
    ]);
    assert.match(words({ ...weights, cached: 50e6 })[1], /from this browser's storage$/);
    assert.deepEqual(words({ stage: "shaders", done: 3, total: 12, cached: 0, speed: null }), [
        "Compiling shaders…",
        "3 of 12",
    ]);
    assert.equal(
        waitingFor(fake({ stage: "prefill", done: 256, total: 1024, label: "" })),
        "Reading the conversation… 25 %",
    );
});

// The server's stream

const data = (chunk) => `data: ${JSON.stringify(chunk)}`;
const delta = (content, token_ids) =>
    data({ choices: [{ index: 0, delta: { content }, finish_reason: null }], token_ids });

test("the server's stream becomes events", () => {
    const reading = new Reading(512, 3);
    const events = [
        ": a comment",
        "event: x",
        data({ object: "wgllm.progress", stage: "queue", done: 1, total: 2, label: "" }),
        delta("Hel", [1]),
        delta("", [2]),
        delta("lo", [3, 4]),
        data({ choices: [{ index: 0, delta: {}, finish_reason: "length" }], usage: null }),
        data({
            choices: [],
            usage: { prompt_tokens: 9, completion_tokens: 4 },
            timings: { cache_n: 5, prompt_ms: 20, predicted_ms: 80 },
            context_used: 13,
            context_size: 256,
        }),
        "data: [DONE]",
    ].flatMap((line) => Array.from(reading.eventsOf(line)));
    assert.deepEqual(events, [
        { type: "progress", stage: "queue", done: 1, total: 2, label: "" },
        text("Hel", 1),
        text("", 2),
        text("", 3),
        text("lo", 4),
    ]);
    assert.ok(reading.done);
    assert.deepEqual(reading.end(reading.reason), {
        type: "end",
        reason: "length",
        stats: {
            promptTokens: 9,
            cachedTokens: 5,
            generatedTokens: 4,
            prefillSeconds: 0.02,
            decodeSeconds: 0.08,
            contextUsed: 13,
            contextSize: 256,
            seed: 3,
        },
    });
});

test("an error event, and what is no JSON, are errors of the server", () => {
    const failure = (line) => {
        try {
            Array.from(new Reading(1, null).eventsOf(line));
        } catch (error) {
            return [error.kind, error.message];
        }
        return null;
    };
    assert.deepEqual(failure(data({ error: { message: "the engine died", code: null } })), [
        "server",
        "the engine died",
    ]);
    assert.equal(
        failure(data({ error: { message: "long", code: "context_length_exceeded" } }))[0],
        "context",
    );
    assert.equal(failure("data: {")[0], "server");
});

/** An Api whose answer is these lines, the last of which may be cut off. */
function api(text) {
    return fake({ fetch: async () => new Response(text), json: async () => ({ ctx_size: 64 }) });
}

test("a stream that breaks off is an error of the network, unless it was stopped", async () => {
    const all = async (model, signal) => {
        const events = [];
        for await (const event of model.generate([], SAMPLING, { signal })) {
            events.push(event);
        }
        return events;
    };
    const cut = new ServerModel(api(`${delta("Hi", [1])}\n\n`));
    await assert.rejects(all(cut), { kind: "network" });
    const stopped = new AbortController();
    stopped.abort();
    assert.deepEqual((await all(cut, stopped.signal)).map(({ type, reason }) => [type, reason]).at(-1), [
        "end",
        "cancelled",
    ]);
});

test("a server that has another model now does not answer for the one that was loaded", async () => {
    const said = (model) =>
        data({ model, choices: [{ index: 0, delta: { content: "Hi" }, finish_reason: "stop" }] });
    for (const [id, answers] of [
        ["mine", true],
        ["other", false],
    ]) {
        const model = new ServerModel(
            fake({
                fetch: async () => new Response(`${said(id)}\n\ndata: [DONE]\n\n`),
                json: async () => ({ id: "mine", ctx_size: 64 }),
            }),
        );
        await model.load();
        const reply = async () => {
            let last;
            for await (last of model.generate([], SAMPLING)) {
                // to its end
            }
            return last?.type;
        };
        if (answers) {
            assert.equal(await reply(), "end");
        } else {
            await assert.rejects(reply(), { kind: "other-model", message: /: other$/ });
        }
    }
});

test("what the server computes with is asked again once its engine is loaded", async () => {
    let where = null;
    let asked = 0;
    const done = `${data({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] })}\n\ndata: [DONE]\n\n`;
    const model = new ServerModel(
        fake({
            fetch: async () => new Response(done),
            json: async (path) => {
                asked += path === "health" ? 1 : 0;
                return path === "health" ? { engine: { where } } : { ctx_size: 64 };
            },
        }),
    );
    assert.deepEqual(await model.load(), { where: "the server", ctxSize: 64 });
    where = "NVIDIA L4 (Vulkan)";
    const told = new Promise((resolve) => {
        model.onFacts = resolve;
    });
    const reply = async () => {
        for await (const event of model.generate([], SAMPLING)) {
            assert.equal(event.type, "end");
        }
    };
    await reply();
    assert.deepEqual(await told, { where, ctxSize: 64 });
    await reply();
    assert.equal(asked, 2); // it is known now
});

test("a request has what was set, and the tokens of replies", () => {
    const request = requestOf(
        [
            { role: "assistant", content: "a", tokenIds: [1] },
            { role: "user", content: "b" },
        ],
        { ...SAMPLING, seed: 0 },
    );
    assert.deepEqual(request.messages, [
        { role: "assistant", content: "a", token_ids: [1] },
        { role: "user", content: "b" },
    ]);
    assert.deepEqual(
        [request.seed, "max_tokens" in request, request.stream, request.progress],
        [0, false, true, true],
    );
});
