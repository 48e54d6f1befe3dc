/** A LocalModel for tests to play with, as `window.local`. */

import { Api } from "/static/api.js";
import { LocalModel } from "/static/local_model.js";

let model = null;
const told = { progress: [], lost: null };

async function load({ key = null, ctxSize = null } = {}) {
    model?.close();
    model = new LocalModel(new Api(location.href, key), { ctxSize });
    model.onLost = (error) => (told.lost = plain(error));
    return again();
}

async function again() {
    told.progress = [];
    const facts = await model.load({ onProgress: (progress) => told.progress.push(progress) });
    return { facts, progress: told.progress };
}

/**
 * The reply to token ids (or messages): its tokens and text and how it ended. `stopAfter`: tokens before a cancel.
 */
async function reply(ids, sampling, { stopAfter = Infinity, during = null } = {}) {
    const messages = typeof ids[0] === "object" ? ids : [{ role: "user", content: ids.join(" ") }];
    const abort = new AbortController();
    const made = { tokens: [], text: "", progress: [], cancelMs: 0 };
    let since = 0;
    for await (const event of model.generate(messages, sampling, { signal: abort.signal })) {
        if (event.type === "text") {
            made.text += event.text;
            if (event.token !== null) {
                made.tokens.push(event.token);
            }
            during?.(made.tokens.length);
        } else if (event.type === "progress") {
            made.progress.push(event);
        } else {
            Object.assign(made, {
                reason: event.reason,
                stats: event.stats,
                cancelMs: performance.now() - since,
            });
        }
        if (made.tokens.length >= stopAfter && !abort.signal.aborted) {
            since = performance.now();
            abort.abort();
        }
    }
    return made;
}

async function failure(work) {
    try {
        await work();
        return null;
    } catch (error) {
        return plain(error);
    }
}

function plain({ name, kind, message }) {
    return { name, kind, message };
}

window.local = {
    load,
    again,
    reply,
    failure,
    told,
    lose: () => model.destroyDevice(),
    loseAfter: (ids, sampling, count) =>
        failure(() => reply(ids, sampling, { during: (n) => n === count && model.destroyDevice() })),
    storedBytes: () => model.storedBytes(),
    deleteStored: () => model.deleteStored(),
    obstacle: async () => {
        const error = await LocalModel.obstacle();
        return error && plain(error);
    },
};
