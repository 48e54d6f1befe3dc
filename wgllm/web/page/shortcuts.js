/** What keys do, and the dialog that lists them. */

import { byId, make, openDialog } from "./dom.js";

/** @typedef {"search" | "create" | "again" | "editLast" | "copyLast" | "settings" | "previous" | "next" | "stop" | "write"} Command */

const CTRL = /Mac|iPhone|iPad/.test(navigator.userAgent) ? "⌘" : "Ctrl";
const ALT = CTRL === "⌘" ? "⌥" : "Alt";

/** By the key's place, since Alt makes other characters of them on some machines. @type {Record<string, Command>} */
const WITH_ALT = {
    KeyN: "create",
    KeyR: "again",
    KeyE: "editLast",
    KeyC: "copyLast",
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
    ["… from anywhere", [ALT, "E"]],
    ["Another reply", [ALT, "R"]],
    ["Previous, next version of the reply", [ALT, "[ ]"]],
    ["Copy the last reply", [ALT, "C"]],
    ["New chat", [ALT, "N"]],
    ["Search chats", [CTRL, "K"]],
    ["Settings", [ALT, ","]],
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
        const command = commandOf(event);
        if (command === "help") {
            event.preventDefault();
            openDialog(byId("help"));
        } else if (command !== null && !document.querySelector("dialog[open]")) {
            event.preventDefault();
            onCommand(command);
        }
    });
}

/** @param {KeyboardEvent} event @returns {Command | "help" | null} */
function commandOf(event) {
    const { key, code, altKey, ctrlKey, metaKey, shiftKey } = event;
    if (altKey && !ctrlKey && !metaKey && !shiftKey) {
        return Object.hasOwn(WITH_ALT, code) ? WITH_ALT[code] : null;
    }
    if ((ctrlKey || metaKey) && !altKey && !shiftKey) {
        return key === "k" ? "search" : key === "/" ? "help" : null;
    }
    if (key === "Escape") {
        return document.querySelector("dialog[open], :popover-open") ? null : "stop";
    }
    const writes = event.target instanceof Element && event.target.closest("input, textarea, select");
    return writes ? null : key === "?" ? "help" : key === "/" ? "write" : null;
}
