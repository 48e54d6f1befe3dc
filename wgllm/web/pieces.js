/** The packed file of a plan's weights: all fills, one after the other, and where its bytes go. */

/** @import { Plan, Region } from "./plan.js" */

/** @typedef {ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>} Source */

/** Bytes of weights that are on their way to the device at a time. */
const PIECE = 4 << 20;

/**
 * The fills' regions, cut to pieces.
 * @param {Plan["fills"]} fills
 * @returns {Generator<Region>}
 */
export function* piecesOf(fills) {
    for (const {
        region: [buffer, offset, size],
    } of fills) {
        for (let at = 0; at < size; at += PIECE) {
            yield [buffer, offset + at, Math.min(PIECE, size - at)];
        }
    }
}

/**
 * Where the bytes `at` to `at + size` of the packed file go, cut to pieces: offsets in them, and regions.
 * @param {Plan["fills"]} fills
 * @param {number} at
 * @param {number} size
 * @returns {Generator<[from: number, region: Region]>}
 */
export function* placesOf(fills, at, size) {
    let begin = 0; // of a fill in the file
    for (const {
        region: [buffer, offset, length],
    } of fills) {
        const last = Math.min(begin + length, at + size);
        for (let from = Math.max(begin, at); from < last; from += PIECE) {
            yield [from - at, [buffer, offset + from - begin, Math.min(PIECE, last - from)]];
        }
        begin += length;
    }
}

/** Reads pieces of the sizes asked for from pieces of any size. */
export class PieceReader {
    #pieces;
    #rest = new Uint8Array();

    /** @param {Source} source */
    constructor(source) {
        this.#pieces = chunks(source);
    }

    /** The next `size` bytes; fewer only at the end. @param {number} size */
    async read(size) {
        const data = new Uint8Array(size);
        let at = 0;
        while (at < size && (await this.hasMore())) {
            const part = this.#rest.subarray(0, size - at);
            data.set(part, at);
            at += part.length;
            this.#rest = this.#rest.subarray(part.length);
        }
        return data.subarray(0, at);
    }

    async hasMore() {
        while (this.#rest.length === 0) {
            const { done, value } = await this.#pieces.next();
            if (done) {
                return false;
            }
            this.#rest = value;
        }
        return true;
    }

    /** Gives up what was not read. */
    async close() {
        await this.#pieces.return(undefined);
    }
}

/** @param {Source} source @returns {AsyncGenerator<Uint8Array<any>, void, undefined>} */
async function* chunks(source) {
    if (!("getReader" in source)) {
        yield* source;
        return;
    }
    // Not every browser can iterate over a stream.
    const reader = source.getReader();
    try {
        for (let next = await reader.read(); !next.done; next = await reader.read()) {
            yield next.value;
        }
    } finally {
        await reader.cancel();
    }
}
