import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { Api, lines } from "../../../wgllm/web/api.js";
import { ModelError } from "../../../wgllm/web/errors.js";

/**
 * A server for one test, and who asks it.
 * @param {import("node:test").TestContext} context
 * @param {import("node:http").RequestListener} answer
 * @param {string | null} [key]
 */
async function serving(context, answer, key = null) {
    const server = createServer(answer);
    await new Promise((resolve) => void server.listen(0, "127.0.0.1", () => resolve(null)));
    context.after(() => {
        server.closeAllConnections();
        server.close();
    });
    const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
    return new Api(`http://127.0.0.1:${port}/page/`, key);
}

/** @param {import("node:http").IncomingMessage} request */
async function bodyOf(request) {
    let text = "";
    for await (const part of request.setEncoding("utf8")) {
        text += part;
    }
    return text;
}

/**
 * What `asked` fails with.
 * @param {Promise<unknown>} asked
 * @returns {Promise<ModelError>}
 */
async function failure(asked) {
    const error = await asked.then(
        () => null,
        (reason) => reason,
    );
    assert.ok(error instanceof ModelError, `${error} is a ModelError`);
    return error;
}

/** @param {Uint8Array[]} pieces A body, as it arrives. */
function answered(...pieces) {
    const body = new ReadableStream({
        start(controller) {
            pieces.forEach((piece) => controller.enqueue(piece));
            controller.close();
        },
    });
    return new Response(body);
}

/** @param {Response} response */
async function all(response) {
    /** @type {string[]} */
    const found = [];
    for await (const line of lines(response)) {
        found.push(line);
    }
    return found;
}

test("paths are resolved against the page, and what is posted arrives with the key", async (t) => {
    /** @type {unknown[]} */
    const seen = [];
    const answer = async (/** @type {any} */ request, /** @type {any} */ response) => {
        const { method, url, headers } = request;
        seen.push([method, url, headers.authorization, headers["content-type"], await bodyOf(request)]);
        response.end('{"tokens": [1]}');
    };
    const api = await serving(t, answer, "secret");
    assert.deepEqual(await api.json("api/tokenize", { json: { text: "ä" } }), { tokens: [1] });
    await api.json("/health", { method: "GET" });
    assert.deepEqual(seen, [
        ["POST", "/page/api/tokenize", "Bearer secret", "application/json", '{"text":"ä"}'],
        ["GET", "/health", "Bearer secret", undefined, ""],
    ]);
});

test("what makes the same Api elsewhere", () => {
    const settings = new Api("http://localhost/", "k").settings;
    assert.deepEqual(settings, { base: "http://localhost/", key: "k" });
});

const REFUSALS = /** @type {const} */ ([
    [401, null, "key"],
    [400, "context_length_exceeded", "context"],
    [422, "too_large", "too-large"],
    [400, null, "request"],
    [404, "unknown_plan", "request"],
    [500, null, "server"],
    [503, null, "busy"],
    [429, null, "busy"],
]);

for (const [status, code, kind] of REFUSALS) {
    test(`status ${status} with code ${code} is an error of kind ${kind}, in the server's words`, async (t) => {
        const api = await serving(t, (_, response) => {
            response.writeHead(status).end(JSON.stringify({ error: { message: "so it is", code } }));
        });
        const error = await failure(api.json("x"));
        assert.deepEqual([error.kind, error.message], [kind, "so it is"]);
    });
}

for (const [header, seconds] of /** @type {const} */ ([
    ["7", 7],
    ["Fri, 31 Dec 1999 23:59:59 GMT", null],
    ["-1", null],
])) {
    test(`Retry-After: ${header}`, async (t) => {
        const api = await serving(t, (_, response) => {
            response.writeHead(503, { "Retry-After": header }).end("<h1>a proxy</h1>");
        });
        const error = await failure(api.fetch("x"));
        assert.equal(error.retryAfter, seconds);
        assert.equal(error.message, "the server answered 503");
    });
}

test("a server that is gone, and one that breaks off, are the network's fault", async (t) => {
    const gone = new Api("http://127.0.0.1:9/");
    assert.equal((await failure(gone.fetch("x"))).kind, "network");
    const api = await serving(t, (_, response) => {
        response.writeHead(200, { "Content-Length": 100 });
        response.write('{"half"', () => response.destroy());
    });
    assert.equal((await failure(api.json("x"))).kind, "network");
    assert.equal((await failure(api.fetch("x").then(all))).kind, "network");
});

test("an abort stays an abort, before the answer and within it", async (t) => {
    const silent = new AbortController();
    const api = await serving(t, (request, response) => {
        if (request.url === "/page/silent") {
            silent.abort();
        } else {
            response.write("begun\n");
        }
    });
    await assert.rejects(api.fetch("silent", { signal: silent.signal }), { name: "AbortError" });
    const within = new AbortController();
    /** @type {string[]} */
    const found = [];
    const read = async () => {
        for await (const line of lines(await api.fetch("x", { signal: within.signal }), within.signal)) {
            found.push(line);
            within.abort();
        }
    };
    await assert.rejects(read, { name: "AbortError" });
    assert.deepEqual(found, ["begun"]);
});

test("lines come whole, wherever the pieces of a body end", async () => {
    const text = 'data: "ä€🙂"\r\n\r\n{"a": 1}\n\nlast';
    const bytes = new TextEncoder().encode(text);
    for (let cut = 0; cut <= bytes.length; cut++) {
        const found = await all(answered(bytes.subarray(0, cut), bytes.subarray(cut)));
        assert.deepEqual(found, ['data: "ä€🙂"', '{"a": 1}', "last"], `cut at byte ${cut}`);
    }
});

test("a line comes as soon as it is there", async () => {
    const { readable, writable } = new TransformStream();
    const writer = writable.getWriter();
    writer.write(new TextEncoder().encode("one\ntw"));
    const found = lines(new Response(readable));
    assert.equal((await found.next()).value, "one");
    writer.write(new TextEncoder().encode("o\n"));
    assert.equal((await found.next()).value, "two");
    await found.return(undefined);
});

test("no body has no lines", async () => {
    assert.deepEqual(await all(new Response(null)), []);
    assert.deepEqual(await all(answered(new TextEncoder().encode("\n\r\n"))), []);
});
