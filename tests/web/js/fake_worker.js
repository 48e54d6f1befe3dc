/** The page's worker as its side of the link sees it: a test says what it answers. */

export class FakeWorker extends EventTarget {
    /** The newest. @type {FakeWorker} */ static last;
    /** What the page asked, without what is cancelled. @type {any[]} */ asked = [];
    ended = false;
    /** Answers a request. @type {(request: any, worker: FakeWorker) => void} */
    static answer = () => {};

    constructor() {
        super();
        FakeWorker.last = this;
    }

    /** @param {any} request */
    postMessage(request) {
        this.asked.push(request);
        FakeWorker.answer(request, this);
    }

    terminate() {
        this.ended = true;
    }

    /** @param {any} answer */
    say(answer) {
        if (!this.ended) {
            this.dispatchEvent(Object.assign(new Event("message"), { data: answer }));
        }
    }

    /** As where its script fails. @param {string} message */
    fail(message) {
        this.dispatchEvent(Object.assign(new Event("error"), { message }));
    }
}
