/**
 * Chats as files: Markdown to read, JSON that holds all branches. The JSON is that of `wgllm chat`
 * (`wgllm/sessions_export.py`), so that a conversation can move between the terminal and the page.
 */

import { oneLine, splitThought, visible } from "./text.js";
import { branch, newChat, newId } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat @typedef {import("./tree.js").Message} Message */

const FORMAT = "wgllm-conversation";
const VERSION = 1;
const STATES = ["complete", "stopped", "error", "interrupted", "partial"];
const ROLES = ["system", "user", "assistant", "tool"];
/** @type {Record<string, string>} */
const NOTES = {
    stopped: "stopped",
    error: "ended by an error",
    interrupted: "interrupted",
    partial: "not finished",
};

/** What is wrong with a file, in one line. */
export class ImportFault extends Error {
    name = "ImportFault";
}

/** The shown branch, to read. @param {Chat} chat */
export function toMarkdown(chat) {
    const parts = [`# ${escaped(oneLine(chat.title, 200)) || "Chat"}`, facts(chat.model, chat.created, "")];
    if (chat.system.trim()) {
        parts.push("## System prompt", closed(chat.system));
    }
    for (const message of branch(chat)) {
        const { thought, said } =
            message.role === "assistant"
                ? splitThought(message.content)
                : { thought: null, said: message.content };
        parts.push(`## ${message.role[0].toUpperCase()}${message.role.slice(1)}`);
        const model = message.model !== chat.model ? (message.model ?? "") : "";
        parts.push(facts(model, message.created, NOTES[message.state] ?? ""));
        if (thought?.trim()) {
            parts.push(`> *Reasoning*\n>\n${closed(thought).replace(/^/gm, "> ").replace(/ +$/gm, "")}`);
        }
        parts.push(closed(said));
    }
    return `${parts.filter((part) => part).join("\n\n")}\n`;
}

/** @param {string} model @param {number} when @param {string} note */
function facts(model, when, note) {
    const local = new Date(when - new Date(when).getTimezoneOffset() * 60_000);
    const moment = local.toISOString().slice(0, 16).replace("T", " ");
    return `*${[escaped(oneLine(model, 200)), moment, note].filter((part) => part).join(" · ")}*`;
}

/** @param {string} text Whose characters mean themselves in what comes back. */
function escaped(text) {
    return text.replace(/[\\`*_{}[\]<>#|~&]/g, "\\$&");
}

/** Markdown in which no code block is left open, so that a message can't reach into the next. @param {string} text */
function closed(text) {
    let fence = "";
    const lines = visible(text).trim().split("\n");
    for (const line of lines) {
        const mark = /^ {0,3}(`{3,}|~{3,})(.*)/.exec(line);
        if (mark && fence === "" && !(mark[1][0] === "`" && mark[2].includes("`"))) {
            fence = mark[1];
        } else if (mark && fence !== "" && mark[1].startsWith(fence) && mark[2].trim() === "") {
            fence = "";
        }
    }
    return [...lines, ...(fence ? [fence] : [])].join("\n");
}

/** All of a chat. @param {Chat} chat */
export function toJson(chat) {
    const messages = Object.values(chat.messages).sort((a, b) => a.created - b.created);
    // Parents before their children, also where a clock went back.
    const ordered = /** @type {Message[]} */ ([]);
    const place = new Map([[/** @type {string | null} */ (null), /** @type {number | null} */ (null)]]);
    for (let left = messages; left.length > 0;) {
        const ready = left.filter(({ parent }) => place.has(parent));
        for (const message of ready) {
            place.set(message.id, ordered.length);
            ordered.push(message);
        }
        left = ready.length > 0 ? left.filter(({ id }) => !place.has(id)) : [];
    }
    const data = {
        format: FORMAT,
        version: VERSION,
        title: chat.title,
        named: chat.named,
        created: chat.created / 1000,
        updated: chat.updated / 1000,
        model: chat.model,
        system_prompt: chat.system,
        settings: {},
        draft: "",
        leaf: place.get(chat.leaf) ?? null,
        messages: ordered.map((message) => ({
            parent: place.get(message.parent) ?? null,
            role: message.role,
            content: message.content,
            state: message.state,
            finish_reason: message.reason ?? null,
            model: message.model ?? "",
            created: message.created / 1000,
            token_count: message.tokenIds?.length ?? null,
            stats: message.stats ?? null,
            last_shown: place.get(chat.shown[message.id] ?? "") ?? null,
            token_ids: message.tokenIds ?? null,
        })),
    };
    return `${JSON.stringify(data, null, 1)}\n`;
}

/** What `toJson` or `wgllm chat` wrote. Throws ImportFault. @param {string} text @returns {Chat} */
export function fromJson(text) {
    let data;
    try {
        data = JSON.parse(text);
    } catch {
        throw new ImportFault("the file is not JSON");
    }
    if (data?.format !== FORMAT) {
        throw new ImportFault("the file holds no conversation of wgllm's");
    }
    if (data.version !== VERSION) {
        throw new ImportFault(`the file has another version than ${VERSION}: this page is too old for it`);
    }
    const chat = newChat({
        system: field(data, "system_prompt", "string", ""),
        model: field(data, "model", "string", ""),
    });
    chat.title = oneLine(field(data, "title", "string", ""), 200);
    chat.named = field(data, "named", "boolean", "");
    chat.created = moment(data, "created", "");
    chat.updated = moment(data, "updated", "");
    if (!Array.isArray(data.messages)) {
        throw new ImportFault("messages must be a list");
    }
    const ids = data.messages.map(newId);
    data.messages.forEach((/** @type {any} */ item, /** @type {number} */ i) => {
        const message = readMessage(item, `messages[${i}]: `, ids, i);
        message.created += i / 1024; // siblings stay in their order
        chat.messages[message.id] = message;
    });
    data.messages.forEach((/** @type {any} */ item, /** @type {number} */ i) => {
        const shown = index(item, "last_shown", ids.length, `messages[${i}]: `);
        if (shown !== null && chat.messages[ids[shown]].parent === ids[i]) {
            chat.shown[ids[i]] = ids[shown];
        }
    });
    const leaf = index(data, "leaf", ids.length, "");
    chat.leaf = leaf === null ? (ids[ids.length - 1] ?? null) : ids[leaf];
    return chat;
}

/** @param {any} item @param {string} where @param {string[]} ids @param {number} i @returns {Message} */
function readMessage(item, where, ids, i) {
    if (typeof item !== "object" || item === null) {
        throw new ImportFault(`${where}must be an object`);
    }
    const parent = index(item, "parent", i, where);
    const role = field(item, "role", "string", where);
    const state = field(item, "state", "string", where);
    if (!ROLES.includes(role) || !STATES.includes(state)) {
        throw new ImportFault(`${where}role or state is none that there is`);
    }
    /** @type {Message} */
    const message = {
        id: ids[i],
        parent: parent === null ? null : ids[parent],
        role,
        content: field(item, "content", "string", where),
        state: state === "partial" ? "interrupted" : state,
        created: moment(item, "created", where),
        version: 1,
        model: oneLine(field(item, "model", "string", where), 200),
    };
    if (typeof item.finish_reason === "string") {
        message.reason = oneLine(item.finish_reason, 40);
    }
    const tokens = item.token_ids ?? null;
    if (tokens !== null) {
        if (
            !Array.isArray(tokens) ||
            !tokens.every((id) => Number.isInteger(id) && id >= 0 && id < 2 ** 31)
        ) {
            throw new ImportFault(`${where}token_ids must be numbers of tokens`);
        }
        message.tokenIds = tokens;
    }
    return message;
}

/** @param {any} data @param {string} name @param {"string" | "boolean"} type @param {string} where @returns {any} */
function field(data, name, type, where) {
    if (typeof data[name] !== type) {
        throw new ImportFault(`${where}${name} must be ${type === "string" ? "a text" : "true or false"}`);
    }
    return data[name];
}

/** @param {any} data @param {string} name @param {string} where In milliseconds. */
function moment(data, name, where) {
    const value = data[name];
    if (typeof value !== "number" || !(value >= 0 && value <= 253_402_300_799)) {
        throw new ImportFault(`${where}${name} must be seconds since 1970`);
    }
    return value * 1000;
}

/** @param {any} data @param {string} name @param {number} below @param {string} where @returns {number | null} */
function index(data, name, below, where) {
    const value = data[name] ?? null;
    if (value !== null && !(Number.isInteger(value) && value >= 0 && value < below)) {
        throw new ImportFault(`${where}${name} must be the place of a message`);
    }
    return value;
}
