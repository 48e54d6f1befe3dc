/** The page's side of its worker. */

import { ModelError } from "./errors.js";

/**
 * @import { Answer, Request } from "./worker.js"
 *
 * @typedef {Extract<Request, {type: "load" | "generate" | "renew"}>} Call
 * @typedef {Call extends infer C ? C extends Call ? Omit<C, "id"> : never : never} Wish A call without its number.
 */

const WORKER = new URL("./worker.js", import.meta.url);

/** Where pages may make scripts of no text, the worker's own address is all that is let through. */
const policy = /** @type {any} */ (globalThis).trustedTypes?.createPolicy("wgllm", {
    /** @param {string} address */
    createScriptURL(address) {
        if (address !== WORKER.href) {
            throw new TypeError("only the page's own worker may be started");
        }
        return address;
    },
});

export class WorkerLink {
    #worker;
    /** @type {Map<number, Inbox>} By call. */ #calls = new Map();
    #last = 0;
    /** @type {ModelError | null} */ #closed = null;

    /**
     * @param {(error: ModelError) => void} onLost The card was lost while nothing ran, or the worker failed. The link is
     *     closed by then.
     */
    constructor(onLost) {
        const lost = (/** @type {ModelError} */ error) => {
            this.close(error);
            onLost(error);
        };
        this.#worker = new Worker(policy?.createScriptURL(WORKER.href) ?? WORKER, { type: "module" });
        this.#worker.addEventListener("message", (/** @type {MessageEvent<Answer>} */ { data }) => {
            if (data.type === "lost") {
                lost(new ModelError(data.error.kind, data.error.message));
            } else {
                this.#calls.get(data.id)?.put(data);
            }
        });
        this.#worker.addEventListener("error", ({ message }) => {
            lost(new ModelError("page", `the page's worker failed: ${message || "it can't be started"}`));
        });
    }

    /**
     * What the worker answers, up to the last. A caller that stops early, or whose `signal` is aborted, cancels it.
     * Throws a ModelError, or for what was cancelled nothing.
     * @param {Wish} wish
     * @param {AbortSignal} [signal]
     * @returns {AsyncGenerator<Answer, void, undefined>}
     */
    async *call(wish, signal) {
        if (this.#closed !== null) {
            throw this.#closed;
        }
        const id = ++this.#last;
        const inbox = new Inbox();
        const cancel = () => this.#post({ type: "cancel", id });
        this.#calls.set(id, inbox);
        this.#post({ ...wish, id });
        signal?.addEventListener("abort", cancel);
        if (signal?.aborted) {
            cancel();
        }
        let ended = false;
        try {
            while (!ended) {
                const answer = await inbox.take();
                ended = isLast(answer);
                if (answer.type !== "failed") {
                    yield answer;
                } else if (answer.error !== null) {
                    throw new ModelError(answer.error.kind, answer.error.message);
                }
            }
        } catch (error) {
            ended = true;
            throw error;
        } finally {
            signal?.removeEventListener("abort", cancel);
            if (!ended) {
                cancel();
                await inbox.last().catch(() => {});
            }
            this.#calls.delete(id);
        }
    }

    /** Waits for the last answer. @param {Wish} wish @param {AbortSignal} [signal] */
    async run(wish, signal) {
        const answers = this.call(wish, signal);
        while (!(await answers.next()).done) {
            // All that matters is whether it fails.
        }
    }

    /** Loses the card, as a driver might. For tests. */
    destroyDevice() {
        this.#post({ type: "destroy-device" });
    }

    /** Ends the worker, and with `error` what it was doing. @param {ModelError} error */
    close(error) {
        this.#closed ??= error;
        this.#worker.terminate();
        this.#calls.forEach((inbox) => inbox.fail(error));
    }

    /** @param {Request} request */
    #post(request) {
        this.#worker.postMessage(request);
    }
}

/** Answers that wait for their reader. */
class Inbox {
    /** @type {Answer[]} */ #answers = [];
    /** @type {ModelError | null} */ #error = null;
    #wake = () => {};

    /** @param {Answer} answer */
    put(answer) {
        this.#answers.push(answer);
        this.#wake();
    }

    /** @param {ModelError} error */
    fail(error) {
        this.#error = error;
        this.#wake();
    }

    /** The next. @returns {Promise<Answer>} */
    async take() {
        for (;;) {
            const next = this.#answers.shift();
            if (next !== undefined) {
                return next;
            }
            if (this.#error !== null) {
                throw this.#error;
            }
            await new Promise((resolve) => {
                this.#wake = () => resolve(undefined);
            });
        }
    }

    /** Settles when the last has come. */
    async last() {
        while (!isLast(await this.take())) {
            // Nobody wants to know.
        }
    }
}

/** @param {Answer} answer */
function isLast({ type }) {
    return type === "loaded" || type === "ended" || type === "failed";
}
