/** A text that grows, as Markdown: of what is shown only the last block is made again. */

import { blocks, nodes } from "./markdown.js";
import { visible } from "./text.js";

/** @typedef {import("./markdown.js").Token} Token */

export class GrowingMarkdown {
    #target;
    /** How much of the text, made visible, can't change any more; its nodes stay. */
    #settled = 0;
    /** @type {string[]} The blocks of that. */ #settledBlocks = [];
    /** @type {{token: Token, made: Node[]}[]} Blocks after it. */ #last = [];
    #text = "";
    #defines = false;

    /** @param {HTMLElement} target An element with nothing else in it. */
    constructor(target) {
        this.#target = target;
    }

    /** @param {string} text All of it; nothing is done where it is the same as before. */
    update(text) {
        const seen = visible(text);
        if (seen === this.#text) {
            return;
        }
        if (!seen.startsWith(this.#text.slice(0, this.#settled))) {
            this.#restart();
        }
        this.#text = seen;
        const tail = blocks(seen.slice(this.#settled));
        this.#show(tail);
        this.#settle(tail);
    }

    /** Shows the whole as it is at its end, where later lines may have had a say in what came before. */
    finish() {
        const whole = blocks(this.#text);
        const raws = whole.map((token) => token.raw);
        const shown = [...this.#settledBlocks, ...this.#last.map(({ token }) => token.raw)];
        if (this.#defines || raws.length !== shown.length || raws.some((raw, i) => raw !== shown[i])) {
            this.#restart();
            this.#show(whole);
        }
    }

    #restart() {
        this.#settled = 0;
        this.#settledBlocks = [];
        this.#last = [];
        this.#target.replaceChildren();
    }

    /** @param {Token[]} tail */
    #show(tail) {
        let same = 0;
        while (
            same < this.#last.length &&
            same < tail.length &&
            this.#last[same].token.raw === tail[same].raw
        ) {
            same++;
        }
        const old = this.#last[same];
        if (old && tail[same] && grewInPlace(old, tail[same])) {
            old.token = tail[same];
            same++;
        }
        for (const { made } of this.#last.splice(same)) {
            for (const node of made) {
                node.parentNode?.removeChild(node);
            }
        }
        for (const token of tail.slice(same)) {
            const made = nodes(token);
            this.#target.append(...made);
            this.#last.push({ token, made });
            this.#defines ||= token.type === "def";
        }
    }

    /**
     * A block stays as it is once another has begun after it, of which a whole line is there: a line that is not
     * whole may still turn out to belong to the block before.
     * @param {Token[]} tail
     */
    #settle(tail) {
        const lastLine = this.#text.lastIndexOf("\n") + 1;
        let at = this.#settled;
        const starts = tail.map((token) => (at += token.raw.length) - token.raw.length);
        let later = tail.length - 1;
        while (later > 0 && (tail[later].type === "space" || starts[later] >= lastLine)) {
            later--;
        }
        // The library may count otherwise than we do (it replaces some spaces): then nothing settles.
        if (later > 0 && at === this.#text.length) {
            this.#settled = starts[later];
            this.#settledBlocks.push(...tail.slice(0, later).map((token) => token.raw));
            this.#last.splice(0, later);
        }
    }
}

/**
 * Code grows in its text node, so that what is selected or scrolled in it stays so.
 * @param {{token: Token, made: Node[]}} old
 * @param {Token} token
 */
function grewInPlace(old, token) {
    if (old.token.type !== "code" || token.type !== "code" || old.token.lang !== token.lang) {
        return false;
    }
    const text = /** @type {HTMLElement} */ (old.made[0]).querySelector("code")?.firstChild;
    if (!(text instanceof Text) || !token.text.startsWith(text.data)) {
        return false;
    }
    text.appendData(token.text.slice(text.data.length));
    return true;
}
