/** The bytes of all tokens, as the server sends them, and text of tokens one by one. */

import { ModelError } from "./errors.js";

const MAGIC = 0x4c4f5657;
const VERSION = 1;
const HEADER_BYTES = 16;
const STRIPS_SPACE = 1;
const CONTROL = 1;

/**
 * Little-endian: u32 magic, version, number of tokens V, flags (bit 0: a text's leading space is not its own);
 * u32 [V + 1] where each token's bytes begin; u8 [V] kinds (1: a control token); zeros up to a multiple of 4; the
 * bytes of all tokens.
 */
export class Vocabulary {
    #offsets;
    #kinds;
    #bytes;

    /** @param {ArrayBuffer} data */
    constructor(data) {
        const view = new DataView(data);
        if (data.byteLength < HEADER_BYTES || view.getUint32(0, true) !== MAGIC) {
            throw new ModelError("server", "the server's vocabulary is none");
        }
        if (view.getUint32(4, true) !== VERSION) {
            throw new ModelError("server", "the server's vocabulary is of another version: reload the page");
        }
        this.size = view.getUint32(8, true);
        this.stripsSpace = (view.getUint32(12, true) & STRIPS_SPACE) !== 0;
        const kinds = HEADER_BYTES + 4 * (this.size + 1);
        const bytes = kinds + Math.ceil(this.size / 4) * 4;
        if (bytes > data.byteLength) {
            throw new ModelError("server", "the server's vocabulary is cut off");
        }
        const offsets = Uint32Array.from({ length: this.size + 1 }, (_, i) =>
            view.getUint32(HEADER_BYTES + 4 * i, true),
        );
        this.#offsets = offsets;
        this.#kinds = new Uint8Array(data, kinds, this.size);
        this.#bytes = new Uint8Array(data, bytes);
        if (offsets.some((at, i) => i > 0 && at < offsets[i - 1])) {
            throw new ModelError("server", "the server's vocabulary is in disorder");
        }
        if (offsets[this.size] > this.#bytes.length) {
            throw new ModelError("server", "the server's vocabulary is cut off");
        }
    }

    /** Whether the token is structure that is never shown. @param {number} token */
    isControl(token) {
        return this.#kinds[token] === CONTROL;
    }

    /** What the token adds to a text, perhaps only part of a UTF-8 sequence. @param {number} token */
    bytesOf(token) {
        return this.#bytes.subarray(this.#offsets[token], this.#offsets[token + 1]);
    }
}

/**
 * Turns the tokens of a reply into text one at a time: the counterpart of `wgllm/tokenizer/stream.py`. A character is
 * given out when its last byte has come; bytes that can't become one are U+FFFD at once.
 */
export class IncrementalDecoder {
    #vocabulary;
    #strip;
    #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

    /** @param {Vocabulary} vocabulary */
    constructor(vocabulary) {
        this.#vocabulary = vocabulary;
        this.#strip = vocabulary.stripsSpace;
    }

    /** The text that is complete now; often one token's, sometimes empty. @param {number} token */
    push(token) {
        // Embeddings may have rows beyond the tokenizer's last token; those stand for no text.
        if (token >= this.#vocabulary.size || this.#vocabulary.isControl(token)) {
            return "";
        }
        let bytes = this.#vocabulary.bytesOf(token);
        if (this.#strip && bytes.length > 0) {
            bytes = bytes.subarray(bytes[0] === 0x20 ? 1 : 0);
            this.#strip = false;
        }
        return this.#utf8.decode(bytes, { stream: true });
    }

    /** What is left at the end: U+FFFD for a character that was cut. */
    flush() {
        return this.#utf8.decode();
    }
}
