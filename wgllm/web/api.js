/** Requests to the server that the page came from, with the visitor's key where it wants one. */

import { ModelError } from "./errors.js";

export class Api {
    #base;
    #key;

    /**
     * @param {string} base The address that paths are resolved against.
     * @param {string | null} [key]
     */
    constructor(base, key = null) {
        this.#base = base;
        this.#key = key;
    }

    /** What makes the same in another thread. @returns {{base: string, key: string | null}} */
    get settings() {
        return { base: this.#base, key: this.#key };
    }

    /** From now on. @param {string | null} key */
    useKey(key) {
        this.#key = key;
    }

    /**
     * The answer to a request; errors of the server and of the network are ModelErrors, an abort is an AbortError.
     * @param {string} path
     * @param {{method?: string, json?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} [options]
     * @returns {Promise<Response>}
     */
    async fetch(path, { method, json, headers = {}, signal } = {}) {
        /** @type {Record<string, string>} */
        const all = { ...headers };
        if (this.#key !== null) {
            all.Authorization = `Bearer ${this.#key}`;
        }
        if (json !== undefined) {
            all["Content-Type"] = "application/json";
        }
        const body = json === undefined ? undefined : JSON.stringify(json);
        let response;
        try {
            response = await fetch(new URL(path, this.#base), {
                method: method ?? (body === undefined ? "GET" : "POST"),
                headers: all,
                body,
                signal,
            });
        } catch {
            signal?.throwIfAborted();
            throw new ModelError("network", "the server does not answer");
        }
        if (!response.ok) {
            throw await errorOf(response);
        }
        return response;
    }

    /** @param {string} path @param {Parameters<Api["fetch"]>[1]} [options] @returns {Promise<any>} */
    async json(path, options) {
        const response = await this.fetch(path, options);
        return await cut(response.json(), options?.signal);
    }
}

/**
 * The lines of an answer, as they come, without the empty ones: of JSON lines, or of a stream of events.
 * @param {Response} response
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<string>}
 */
export async function* lines(response, signal) {
    const body = response.body;
    if (body === null) {
        return;
    }
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
        for (;;) {
            const { done, value } = await cut(reader.read(), signal);
            const parts = (rest + (value ?? "")).split(/\r?\n/);
            rest = done ? "" : /** @type {string} */ (parts.pop());
            yield* parts.filter((line) => line !== "");
            if (done) {
                return;
            }
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}

/**
 * A body that breaks off is the network's fault, unless it was aborted.
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
async function cut(promise, signal) {
    try {
        return await promise;
    } catch {
        signal?.throwIfAborted();
        throw new ModelError("network", "the connection to the server broke");
    }
}

/** @param {Response} response @returns {Promise<ModelError>} */
async function errorOf(response) {
    let said = `the server answered ${response.status}`;
    let code = "";
    try {
        const { error } = await response.json();
        said = typeof error?.message === "string" ? error.message : said;
        code = error?.code ?? "";
    } catch {
        // Not the server's own words: a proxy's perhaps.
    }
    if (response.status === 401) {
        return new ModelError("key", said);
    }
    if (response.status === 503 || response.status === 429) {
        const seconds = Number(response.headers.get("Retry-After"));
        return new ModelError("busy", said, { retryAfter: seconds > 0 ? seconds : null });
    }
    if (code === "context_length_exceeded") {
        return new ModelError("context", said);
    }
    if (code === "too_large") {
        return new ModelError("too-large", said);
    }
    return new ModelError(response.status < 500 ? "request" : "server", said, { code });
}
