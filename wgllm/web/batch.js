/** Puts what comes in quick succession together, so that the other side is not flooded. */

/** At least so long between two: about what a screen takes to show a picture. */
const PAUSE_MS = 16;

/** @template T */
export class Batch {
    #send;
    /** @type {T[]} */ #held = [];
    /** @type {ReturnType<typeof setTimeout> | null} */ #timer = null;
    #last = -Infinity;
    #now;

    /** @param {(all: T[]) => void} send @param {() => number} now In milliseconds. */
    constructor(send, now = () => performance.now()) {
        this.#send = send;
        this.#now = now;
    }

    /** Sends it at once if it is the first for a while. @param {T} one */
    add(one) {
        this.#held.push(one);
        const wait = this.#last + PAUSE_MS - this.#now();
        if (wait <= 0) {
            this.flush();
        } else {
            this.#timer ??= setTimeout(() => this.flush(), wait);
        }
    }

    /** Sends what is held. */
    flush() {
        if (this.#timer !== null) {
            clearTimeout(this.#timer);
            this.#timer = null;
        }
        if (this.#held.length > 0) {
            this.#last = this.#now();
            this.#send(this.#held.splice(0));
        }
    }
}
