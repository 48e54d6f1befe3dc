/** Foreign text, made fit to be seen: nothing in it acts, and nothing hides. */

// C0 but tab and line feed, DEL, C1; and what turns the direction of the text that follows it.
// eslint-disable-next-line no-control-regex
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/**
 * `text` with signs in place of control characters and of those that turn the direction of text.
 * @param {string} text
 */
export function visible(text) {
    return text.replace(/\r\n?/g, "\n").replace(HIDDEN, (char) => {
        const code = char.charCodeAt(0);
        if (code < 0x20) {
            return String.fromCharCode(0x2400 + code);
        }
        return code === 0x7f ? "\u2421" : `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
    });
}

/**
 * The beginning of a text in one line.
 * @param {string} text
 * @param {number} length In characters as people count them, about.
 */
export function oneLine(text, length) {
    const line = visible(text.slice(0, length * 4))
        .replace(/\s+/g, " ")
        .trim();
    const chars = Array.from(line);
    return chars.length <= length
        ? line
        : `${chars
              .slice(0, length - 1)
              .join("")
              .trimEnd()}…`;
}

/** What a chat is called after its first message. @param {string} text */
export function titleOf(text) {
    return oneLine(text.replace(/^[\s#>*`-]+/, ""), 60);
}

const THINK = /^\s*<think>([\s\S]*?)(<\/think>|$)/;

/**
 * A reply's reasoning, where the model marks it, and what it says.
 * @param {string} text
 * @returns {{thought: string | null, thinking: boolean, said: string}} `thinking`: the reasoning has no end yet.
 */
export function splitThought(text) {
    const found = THINK.exec(text);
    if (found === null) {
        return { thought: null, thinking: false, said: text };
    }
    return {
        thought: found[1],
        thinking: found[2] === "",
        said: text.slice(found[0].length).replace(/^\s+/, ""),
    };
}

/** What a name must be to be a file's. @param {string} title @param {string} ending */
export function fileName(title, ending) {
    const safe = title
        .replace(/[^\p{L}\p{N}._ -]+/gu, "")
        .trim()
        .replace(/\s+/g, "-")
        .replace(/^\.+/, "")
        .slice(0, 60);
    return `${safe || "chat"}.${ending}`;
}

/** What is told in one line of small letters, as a sentence. @param {string} text */
export function sentence(text) {
    return text === "" ? "" : `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
