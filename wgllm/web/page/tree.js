/**
 * A chat: a tree of messages, of which one branch is shown. Plain data, so that it can be kept as it is.
 *
 * @import { Message as Turn, Stats as Made } from "../model.js"
 *
 * @typedef {"partial" | "complete" | "stopped" | "error" | "interrupted"} State `partial`: it is being generated.
 * @typedef {Omit<Made, "seed"> & {seed?: number | string | null, firstSeconds?: number}} Stats `firstSeconds`: from
 *     sending to the first text. JSON has no room for large seeds, which are text.
 * @typedef {{
 *     id: string, parent: string | null, role: "system" | "user" | "assistant" | "tool", content: string, state: State,
 *     created: number, version: number, tokenIds?: number[], reason?: string, model?: string, where?: string,
 *     stats?: Stats, error?: {kind: string, message: string}, owner?: string, touched?: number,
 * }} Message `version` grows with each change; `owner` is the tab that generates it, which `touched` it last.
 * @typedef {{
 *     id: string, title: string, named: boolean, created: number, updated: number, revision: number, model: string,
 *     system: string, messages: Record<string, Message>, leaf: string | null, shown: Record<string, string>,
 * }} Chat Times are in milliseconds since 1970; `shown`: below which message which branch was shown last.
 */

import { titleOf } from "./text.js";

/** A name that nothing else has. */
export function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {{system?: string, model?: string}} [options] @returns {Chat} */
export function newChat({ system = "", model = "" } = {}) {
    const now = Date.now();
    return {
        id: newId(),
        title: "",
        named: false,
        created: now,
        updated: now,
        revision: 0,
        model,
        system,
        messages: {},
        leaf: null,
        shown: {},
    };
}

/**
 * Adds a message below `parent`, and shows it.
 * @param {Chat} chat
 * @param {string | null} parent
 * @param {Pick<Message, "role" | "content"> & Partial<Message>} rest
 * @returns {Message}
 */
export function addMessage(chat, parent, rest) {
    // Siblings stand in the order in which they came, also within a millisecond.
    const latest = Object.values(chat.messages).reduce((max, message) => Math.max(max, message.created), 0);
    /** @type {Message} */
    const message = {
        id: newId(),
        parent,
        state: "complete",
        created: Math.max(Date.now(), latest + 1),
        version: 1,
        ...rest,
    };
    chat.messages[message.id] = message;
    chat.updated = Date.now();
    if (!chat.named && chat.title === "" && message.role === "user") {
        chat.title = titleOf(message.content);
    }
    show(chat, message.id);
    return message;
}

/** Those that answer the same, in their order. @param {Chat} chat @param {string | null} parent */
export function childrenOf(chat, parent) {
    const children = Object.values(chat.messages).filter((message) => message.parent === parent);
    return children.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

/** Shows the branch that a message is on, as far down as it was shown before. @param {Chat} chat @param {string} id */
export function show(chat, id) {
    for (let at = chat.messages[id]; at; at = chat.messages[at.parent ?? ""]) {
        chat.shown[at.parent ?? ""] = at.id;
    }
    let leaf = id;
    for (;;) {
        const children = childrenOf(chat, leaf);
        const last = children.find((child) => child.id === chat.shown[leaf]) ?? children[children.length - 1];
        if (!last) {
            break;
        }
        leaf = last.id;
    }
    chat.leaf = leaf;
}

/** The messages down to `leaf`, the first one first. @param {Chat} chat @param {string | null} [leaf] */
export function branch(chat, leaf = chat.leaf) {
    /** @type {Message[]} */
    const path = [];
    for (let at = chat.messages[leaf ?? ""]; at; at = chat.messages[at.parent ?? ""]) {
        path.push(at);
    }
    return path.reverse();
}

/**
 * What the model reads to answer the message `id`. Empty replies (stopped before their first token, or failed) are left
 * out; the questions around them become one, since many templates want turns that alternate.
 * @param {Chat} chat
 * @param {string | null} id
 * @returns {Turn[]}
 */
export function turns(chat, id) {
    /** @type {Turn[]} */
    const told = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
    for (const { role, content, tokenIds } of branch(chat, id)) {
        const last = told[told.length - 1];
        if (role === "user" && last?.role === "user") {
            last.content += `\n\n${content}`;
        } else if (role !== "assistant" || content !== "") {
            told.push(tokenIds?.length ? { role, content, tokenIds } : { role, content });
        }
    }
    return told;
}

/**
 * What two tabs made of one chat, in one. Messages are never removed, so that nothing can be lost.
 * @param {Chat} stored
 * @param {Chat} mine Whose branch is shown.
 * @returns {Chat}
 */
export function merged(stored, mine) {
    const messages = { ...stored.messages };
    for (const message of Object.values(mine.messages)) {
        const other = messages[message.id];
        if (!other || other.version <= message.version) {
            messages[message.id] = message;
        }
    }
    const named = stored.revision > mine.revision && stored.named ? stored : mine;
    return {
        ...mine,
        messages,
        title: named.title,
        named: named.named,
        shown: { ...stored.shown, ...mine.shown },
        updated: Math.max(stored.updated, mine.updated),
        revision: Math.max(stored.revision, mine.revision),
    };
}

/**
 * Tells replies whose tab is gone: what it saved of them is all there is. Gives whether there were any.
 * @param {Chat} chat
 * @param {(message: Message) => boolean} isGone
 */
export function markInterrupted(chat, isGone) {
    const left = Object.values(chat.messages).filter(
        (message) => message.state === "partial" && isGone(message),
    );
    for (const message of left) {
        message.state = "interrupted";
        message.version++;
    }
    return left.length > 0;
}
