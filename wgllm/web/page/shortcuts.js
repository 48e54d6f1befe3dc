/** What keys do, and the dialog that lists them. */

import { byId, make, openDialog } from "./dom.js";

/** @typedef {"search" | "create" | "settings" | "stop" | "write" | import("./last.js").Command} Command */

/** There Option writes letters and signs, so Control with Shift takes the place of Alt. */
const MAC = /Mac|iPhone|iPad/.test(globalThis.navigator?.userAgent ?? "");
const CTRL = MAC ? "⌘" : "Ctrl";
const ALT = MAC ? ["⌃", "⇧"] : ["Alt"];

/** Letters, and the places of other keys. @type {Record<string, Command>} */
const WITH_ALT = {
    n: "create",
    r: "again",
    e: "editLast",
    c: "copyLast",
    Comma: "settings",
    BracketLeft: "previous",
    BracketRight: "next",
};

/** @type {[string, string[]][]} */
const LISTED = [
    ["Send", ["Enter"]],
    ["New line", ["Shift", "Enter"]],
    ["Stop; the text is kept", ["Esc"]],
    ["Edit your last message", ["↑"]],
    ["… from anywhere", [...ALT, "E"]],
    ["Another reply", [...ALT, "R"]],
    ["Previous, next version of the reply", [...ALT, "[ ]"]],
    ["Copy the last reply", [...ALT, "C"]],
    ["New chat", [...ALT, "N"]],
    ["Search chats", [CTRL, "K"]],
    ["Settings", [...ALT, ","]],
    ["Go to the message field", ["/"]],
    ["This list", ["?"]],
];

/** @param {(command: Command) => void} onCommand */
export function listen(onCommand) {
    byId("shortcuts").append(
        ...LISTED.flatMap(([does, keys]) => [
            make("dt", {}, does),
            make("dd", {}, ...keys.flatMap((key, i) => [...(i > 0 ? [" "] : []), make("kbd", {}, key)])),
        ]),
    );
    byId("open-help").addEventListener("click", () => openDialog(byId("help")));
    document.addEventListener("keydown", (event) => {
        if (event.defaultPrevented || event.isComposing) {
            return;
        }
        const command = commandOf(event, {
            mac: MAC,
            writes: event.target instanceof Element && event.target.matches("input, textarea, select"),
            open: document.querySelector("dialog[open], :popover-open") !== null,
        });
        if (command === "help") {
            event.preventDefault();
            openDialog(byId("help"));
        } else if (command !== null && !document.querySelector("dialog[open]")) {
            event.preventDefault();
            onCommand(command);
        }
    });
}

/**
 * What a key asks for.
 * @param {Pick<KeyboardEvent, "key" | "code" | "altKey" | "ctrlKey" | "metaKey" | "shiftKey">} event
 * @param {{mac: boolean, writes: boolean, open: boolean}} state `writes`: it would go into a field; `open`: there is a
 *     dialog or a menu, which Escape closes.
 * @returns {Command | "help" | null}
 */
export function commandOf(event, { mac, writes, open }) {
    const { key, altKey, ctrlKey, metaKey, shiftKey } = event;
    const held = [ctrlKey && "ctrl", metaKey && "meta", altKey && "alt", shiftKey && "shift"]
        .filter(Boolean)
        .join("+");
    const name = nameOf(event);
    if (held === (mac ? "ctrl+shift" : "alt")) {
        return Object.hasOwn(WITH_ALT, name) ? WITH_ALT[name] : null;
    }
    if (ctrlKey !== metaKey && !altKey) {
        // On some keyboards a slash needs Shift.
        return name === "k" && !shiftKey ? "search" : key === "/" ? "help" : null;
    }
    if (key === "Escape") {
        return open ? null : "stop";
    }
    return writes || ctrlKey || metaKey ? null : key === "?" ? "help" : key === "/" ? "write" : null;
}

/**
 * The letter on a key, in small; where it is none of the Latin ones, the letter of its place on an English keyboard.
 * @param {Pick<KeyboardEvent, "key" | "code">} event
 */
function nameOf({ key, code }) {
    return /^[a-z]$/i.test(key) ? key.toLowerCase() : /^Key[A-Z]$/.test(code) ? code[3].toLowerCase() : code;
}
