/**
 * A LocalModel for tests to play with, as `window.local`, in any document of the server's. The browser runs this before
 * the document, which no policy of the server's keeps it from.
 */

/** @param {typeof import("../../wgllm/web/api.js")} api @param {typeof import("../../wgllm/web/local_model.js")} own */
function playground({ Api }, { LocalModel }) {
    let model = null;
    const told = { progress: [], lost: null };

    async function load({ key = null, ctxSize = null } = {}) {
        model?.close();
        model = new LocalModel(new Api(location.origin, key), { ctxSize });
        model.onLost = (error) => (told.lost = plain(error));
        return again();
    }

    async function again() {
        told.progress = [];
        const facts = await model.load({ onProgress: (progress) => told.progress.push(progress) });
        return { facts, progress: told.progress };
    }

    /** The reply to messages: its tokens and text and how it ended. `stopAfter`: tokens before a cancel. */
    async function reply(messages, sampling, { stopAfter = Infinity, during = null } = {}) {
        const abort = new AbortController();
        const made = { tokens: [], text: "", progress: [] };
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
                Object.assign(made, { reason: event.reason, stats: event.stats });
            }
            if (made.tokens.length >= stopAfter && !abort.signal.aborted) {
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

    return {
        load,
        again,
        reply,
        failure,
        told,
        lose: () => model.destroyDevice(),
        loseAfter: (messages, sampling, count) =>
            failure(() => reply(messages, sampling, { during: (n) => n === count && model.destroyDevice() })),
        storedBytes: async () => (await LocalModel.stored()).bytes,
        deleteStored: () => LocalModel.deleteStored(),
        obstacle: async () => {
            const error = await LocalModel.obstacle();
            return error && plain(error);
        },
    };
}

if (location.protocol === "http:") {
    Promise.all([import("/static/api.js"), import("/static/local_model.js")]).then(
        (modules) => (window.local = playground(...modules)),
    );
}
