import assert from "node:assert/strict";
import { test } from "node:test";

import { IncrementalDecoder, Vocabulary } from "../../../wgllm/web/vocabulary.js";
import { vectors } from "./vectors.js";

/** @param {string} base64 */
function bytesOf(base64) {
    return Uint8Array.from(Buffer.from(base64, "base64"));
}

test("tokens one by one make the text that Python makes", () => {
    let count = 0;
    for (const { vocabulary, texts } of vectors("decoder")) {
        const read = new Vocabulary(bytesOf(vocabulary).buffer);
        for (const [ids, pieces] of texts) {
            const decoder = new IncrementalDecoder(read);
            const made = [...ids.map((/** @type {number} */ id) => decoder.push(id)), decoder.flush()];
            assert.deepEqual(made, pieces, String(ids));
            count++;
        }
    }
    assert.ok(count > 100);
});

test("rows of the embedding beyond the vocabulary are no text", () => {
    const [{ vocabulary }] = vectors("decoder");
    const read = new Vocabulary(bytesOf(vocabulary).buffer);
    assert.equal(new IncrementalDecoder(read).push(read.size), "");
});

test("a vocabulary that was cut off, or is none, is refused", () => {
    const [{ vocabulary }] = vectors("decoder");
    const whole = bytesOf(vocabulary);
    for (let size = 0; size < whole.length; size++) {
        assert.throws(
            () => new Vocabulary(whole.slice(0, size).buffer),
            { name: "ModelError" },
            `${size} bytes`,
        );
    }
    for (const [at, byte] of [
        [0, 1],
        [4, 2],
        [16, 255],
        [20, 255],
    ]) {
        const other = whole.slice();
        other[at] = byte;
        assert.throws(() => new Vocabulary(other.buffer), { kind: "server" }, `byte ${at}`);
    }
});
