/** What a user is told when something fails: a kind that the page can act on, and one line. */

/**
 * - `no-webgpu`: the browser has no WebGPU; `insecure`: it hides WebGPU from plain http; `no-adapter`: it offers no card
 * - `too-large`: the model does not fit the card or the limits; `out-of-memory`: the card had no room after all
 * - `lost`: the card was lost; `shader`: the browser refused a shader; `numbers`: the card made no numbers of a step
 * - `context`: the prompt does not fit the context; `request`: what was asked for can't be
 * - `network`: the server does not answer; `key`: it wants another key; `busy`: its queue is full; `server`: it failed;
 *   `other-model`: it has another model than the one that was loaded
 * - `page`: the page's own code failed
 *
 * @typedef {"no-webgpu" | "insecure" | "no-adapter" | "too-large" | "out-of-memory" | "lost" | "shader" | "numbers"
 *     | "context" | "request" | "network" | "key" | "busy" | "server" | "other-model" | "page"} ErrorKind
 */

export class ModelError extends Error {
    name = "ModelError";

    /**
     * @param {ErrorKind} kind
     * @param {string} message One line.
     * @param {{retryAfter?: number | null, code?: string}} [details] `retryAfter`: seconds after which the server may
     *     have time; `code`: the server's own.
     */
    constructor(kind, message, { retryAfter = null, code = "" } = {}) {
        super(message.replace(/\s+/g, " ").trim());
        this.kind = kind;
        this.retryAfter = retryAfter;
        this.code = code;
    }
}
