/** What slot 0 holds, and how far it can go back: the counterpart of `wgllm/cache.py`. */

/**
 * @import { Plan } from "./plan.js"
 *
 * @typedef {{cells: number, window: number | null}} Ring The cells of a state that layers share, and how many
 *     positions a row of theirs sees, itself included; null: all.
 */

/**
 * The rings of a plan's states.
 * @param {Plan} plan
 * @param {Record<string, number | null>} windows By state.
 * @returns {Ring[]}
 */
export function ringsOf(plan, windows) {
    const all = Object.entries(windows).map(([name, window]) => {
        const { shape } = plan.states[name];
        return { cells: shape.length === 2 ? shape[1] : shape[2], window }; // [S, C] or [S, Hkv, C, D]
    });
    return [...new Map(all.map((ring) => [`${ring.cells} ${ring.window}`, ring])).values()];
}

export class KvCache {
    /** @type {{cells: number, window: number}[]} */ #rings;
    /** @type {number[]} The token at each position that the state holds. */ #tokens = [];
    /** @type {number[]} Per ring: positions below this have been overwritten. */ #lost;

    /** @param {Ring[]} rings @param {number} ctxSize */
    constructor(rings, ctxSize) {
        this.ctxSize = ctxSize;
        this.#rings = rings.flatMap(({ cells, window }) =>
            window !== null && cells < ctxSize ? [{ cells, window }] : [],
        );
        this.#lost = this.#rings.map(() => 0);
    }

    get length() {
        return this.#tokens.length;
    }

    /**
     * A step is about to write `n` positions after what the slot holds; rings lose what lay in those cells.
     */
    begin(/** @type {number} */ n) {
        const end = this.#tokens.length + n;
        this.#lost = this.#lost.map((lost, i) => Math.max(lost, end - this.#rings[i].cells));
    }

    /** The step that was begun has run. @param {Iterable<number>} tokens */
    commit(tokens) {
        for (const token of tokens) {
            this.#tokens.push(token);
        }
    }

    /**
     * Keeps at most the first `length` positions; returns how many are kept.
     *
     * Fewer are kept (none) when a window that a later row sees is no longer whole: after that the caller runs the
     * tokens again from where the slot now ends. The runtime must be told the same length.
     * @param {number} length
     */
    truncate(length) {
        let kept = Math.min(length, this.#tokens.length);
        for (const [i, { window }] of this.#rings.entries()) {
            // The next row, at position `kept`, sees positions from here on.
            if (Math.max(0, kept - window + 1) < Math.min(this.#lost[i], kept)) {
                kept = 0;
            }
        }
        if (kept === 0) {
            this.#lost.fill(0);
        }
        this.#tokens.length = kept;
        return kept;
    }

    /** How many of `tokens`, from the first on, the slot holds. @param {number[]} tokens */
    commonPrefix(tokens) {
        const most = Math.min(this.#tokens.length, tokens.length);
        let n = 0;
        while (n < most && this.#tokens[n] === tokens[n]) {
            n++;
        }
        return n;
    }
}
