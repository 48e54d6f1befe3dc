import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it, mock } from "node:test";

import { Answers } from "../../../wgllm/web/answers.js";

const LOOK_MS = 100;

/** A device whose browser looks for answers every 100 ms and with each submission, or always. */
class Device {
    submissions = 0;
    /** @type {(() => void)[]} */ #asked = [];

    /** @param {boolean} always */
    constructor(always) {
        this.always = always;
        this.busyUntil = 0;
        setInterval(() => this.#look(), LOOK_MS);
    }

    get queue() {
        return this;
    }

    /** @param {unknown[]} commands */
    submit(commands) {
        assert.deepEqual(commands, []);
        this.submissions++;
        this.#look();
    }

    onSubmittedWorkDone() {
        return this.always
            ? Promise.resolve()
            : /** @type {Promise<void>} */ (
                  new Promise((resolve) => {
                      this.#asked.push(resolve);
                  })
              );
    }

    #look() {
        if (performance.now() >= this.busyUntil) {
            this.#asked.splice(0).forEach((resolve) => resolve());
        }
    }
}

/** Milliseconds until a promise is settled, which pass one by one. @param {Promise<unknown>} work */
async function passed(work) {
    const began = performance.now();
    let settled = false;
    void work.then(() => {
        settled = true;
    });
    await followers();
    while (!settled) {
        now++;
        mock.timers.tick(1);
        await followers();
    }
    return performance.now() - began;
}

/** Lets what waits for promises run. */
async function followers() {
    for (let i = 0; i < 10; i++) {
        await Promise.resolve();
    }
}

let now = 0;

/** @param {boolean} always @param {number} phase Of the browser's looking when it is measured. */
async function measured(always, phase) {
    const device = new Device(always);
    now += phase;
    mock.timers.tick(phase);
    const answers = new Answers(/** @type {GPUDevice} */ (/** @type {unknown} */ (device)));
    await passed(answers.measure());
    device.submissions = 0;
    return { device, answers };
}

describe("answers of a device", () => {
    beforeEach(() => {
        now = 0;
        mock.timers.enable({ apis: ["setInterval"] });
        mock.method(performance, "now", () => now);
    });

    afterEach(() => {
        mock.timers.reset();
        mock.restoreAll();
    });

    it("come by themselves", async () => {
        const { device, answers } = await measured(true, 0);
        await passed(answers.workDone());
        assert.equal(device.submissions, 0);
    });

    for (const phase of [0, 50, 98]) {
        it(`are asked for where the browser looks seldom, measured ${phase} ms after it has looked`, async () => {
            const { device, answers } = await measured(false, phase);
            const spent = [];
            for (let i = 0; i < 20; i++) {
                spent.push(await passed(answers.workDone()));
            }
            assert.ok(Math.max(...spent) <= 4, `${spent}`);
            device.busyUntil = now + 30;
            const long = await passed(answers.workDone());
            assert.ok(long >= 30 && long <= 34, `${long}`);
        });
    }

    it("are asked for once while several are waited for, and not afterwards", async () => {
        const { device, answers } = await measured(false, 0);
        device.busyUntil = now + 40;
        await passed(Promise.all([answers.workDone(), answers.workDone(), answers.workDone()]));
        assert.equal(device.submissions, 10);
        await assert.rejects(answers.to(Promise.reject(new Error("lost"))));
        const before = device.submissions;
        mock.timers.tick(1000);
        assert.equal(device.submissions, before);
    });
});
