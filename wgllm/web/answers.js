/**
 * Waiting for what a device answers. Firefox looks for answers ten times a second, and whenever something is submitted:
 * there, nothing is submitted again and again while somebody waits.
 */

/** An idle device that takes longer to answer is that of a browser which looks seldom. */
const SELDOM_MS = 25;
const PAUSE_MS = 4;

export class Answers {
    #device;
    #seldom = false;
    #waiting = 0;
    /** @type {ReturnType<typeof setInterval> | undefined} */ #timer;

    /** @param {GPUDevice} device */
    constructor(device) {
        this.#device = device;
    }

    /** Finds out how soon the device answers, which should have nothing else to do. */
    async measure() {
        const { queue } = this.#device;
        // The first ends when the browser has just looked, so that the second takes all of the time between two looks.
        for (let i = 0; i < 2; i++) {
            const began = performance.now();
            queue.submit([]);
            await queue.onSubmittedWorkDone();
            this.#seldom = performance.now() - began > SELDOM_MS;
        }
    }

    /** What `answer` will be. @template T @param {Promise<T>} answer @returns {Promise<T>} */
    async to(answer) {
        if (!this.#seldom) {
            return answer;
        }
        if (this.#waiting === 0) {
            this.#timer = setInterval(() => this.#device.queue.submit([]), PAUSE_MS);
        }
        this.#waiting++;
        try {
            return await answer;
        } finally {
            this.#waiting--;
            if (this.#waiting === 0) {
                clearInterval(this.#timer);
            }
        }
    }

    /** When the device has done what it was given. */
    workDone() {
        return this.to(this.#device.queue.onSubmittedWorkDone());
    }
}
