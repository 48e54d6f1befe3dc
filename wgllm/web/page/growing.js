/** A text that grows, as Markdown: of what is shown only the last block is made again, of a list or table the last part. */

import { blocks, listItem, nodes, tableRow } from "./markdown.js";
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
 * Whether the block could be made to show more without being made again, so that what is selected or scrolled in it
 * stays so, and a long one takes no longer than a short one.
 * @param {{token: Token, made: Node[]}} old
 * @param {Token} token
 */
function grewInPlace({ token: old, made }, token) {
    const block = made[0];
    if (!(block instanceof HTMLElement)) {
        return false;
    }
    if (old.type === "code" && token.type === "code" && old.lang === token.lang) {
        return codeGrew(block, token.text);
    }
    if (old.type === "list" && token.type === "list" && sameList(old, token)) {
        const same = differsAt(old.items, token.items, (a, b) => a.raw === b.raw);
        replaceFrom(
            block,
            same,
            token.items.slice(same).map((/** @type {Token} */ item) => listItem(item)),
        );
        return true;
    }
    const body = block.querySelector("tbody");
    if (old.type === "table" && token.type === "table" && body && headOf(old) === headOf(token)) {
        const same = differsAt(old.rows, token.rows, (a, b) =>
            a.every((/** @type {Token} */ cell, /** @type {number} */ i) => cell.text === b[i].text),
        );
        replaceFrom(
            body,
            same,
            token.rows.slice(same).map((/** @type {Token[]} */ cells) => tableRow("td", cells)),
        );
        return true;
    }
    return false;
}

/** @param {HTMLElement} block @param {string} code */
function codeGrew(block, code) {
    const text = block.querySelector("code")?.firstChild;
    if (!(text instanceof Text) || !code.startsWith(text.data)) {
        return false;
    }
    text.appendData(code.slice(text.data.length));
    return true;
}

/** Whether the items of both are shown the same way. @param {Token} a @param {Token} b */
function sameList(a, b) {
    return a.ordered === b.ordered && a.start === b.start && a.loose === b.loose;
}

/** Its first lines: the header, and how columns stand. @param {Token} table */
function headOf({ raw }) {
    return raw.split("\n", 2).join("\n");
}

/**
 * Where the second list goes on otherwise than the first.
 * @param {any[]} a
 * @param {any[]} b
 * @param {(a: any, b: any) => boolean} isSame
 */
function differsAt(a, b, isSame) {
    const at = b.findIndex((each, i) => i >= a.length || !isSame(a[i], each));
    return at < 0 ? b.length : at;
}

/** @param {Element} parent @param {number} at @param {Node[]} children */
function replaceFrom(parent, at, children) {
    while (parent.children.length > at) {
        parent.lastElementChild?.remove();
    }
    parent.append(...children);
}
