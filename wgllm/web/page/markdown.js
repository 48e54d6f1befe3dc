/**
 * Markdown as DOM nodes. A library splits the text into tokens; here each becomes elements of a fixed list, with text
 * nodes inside. No HTML is parsed anywhere: what looks like it is shown as text. Nothing is loaded: images are links.
 */

import { lexer } from "../vendor/marked.js";
import { decoded } from "./entities.js";

/** @typedef {{type: string, raw: string, [name: string]: any}} Token */

/** Deeper than any text that somebody wrote; what lies below is shown as it is. */
const DEEPEST = 40;

/** Elements that tokens become which need no more than their children. @type {Record<string, string>} */
const PLAIN = { paragraph: "p", blockquote: "blockquote", strong: "strong", em: "em", del: "s" };

const SCHEMES = new Set(["http:", "https:", "mailto:"]);

/**
 * The blocks of a text.
 * @param {string} text
 * @returns {Token[]}
 */
export function blocks(text) {
    try {
        return lexer(text);
    } catch {
        // Nested more deeply than the library can follow.
        return [{ type: "plain", raw: text, text }];
    }
}

/**
 * The DOM of a token.
 * @param {Token} token
 * @param {number} [depth]
 * @returns {Node[]}
 */
export function nodes(token, depth = 0) {
    if (depth > DEEPEST) {
        return [element("span", token.raw)];
    }
    const inside = () => children(token, depth);
    if (Object.hasOwn(PLAIN, token.type)) {
        return [element(PLAIN[token.type], ...inside())];
    }
    switch (token.type) {
        case "space":
        case "def":
            return [];
        case "heading":
            // Above them stands the page's title. One without text, as it begins, is none to those who hear the page.
            return token.text === ""
                ? []
                : [
                      withClass(
                          element(`h${Math.min(6, token.depth + 1)}`, ...inside()),
                          `depth-${token.depth}`,
                      ),
                  ];
        case "hr":
            return [element("hr")];
        case "br":
            return [element("br")];
        case "code":
            return [codeBlock(token.text, token.lang ?? "")];
        case "codespan":
            return [element("code", token.text)];
        case "list":
            return [list(token, depth)];
        case "checkbox":
            return [checkbox(token.checked === true)];
        case "table":
            return [table(token, depth)];
        case "link":
            return [link(token.autolink ? token.href : decoded(token.href), inside())];
        case "image":
            return [link(decoded(token.href), [text(token.text || token.href)], "Image: ")];
        case "escape":
            return [text(token.text)];
        case "text":
            return token.tokens ? inside() : [text(decoded(token.text))];
        case "html":
            return [token.block ? withClass(element("p", token.raw.trimEnd()), "raw") : text(token.raw)];
        default:
            return [withClass(element("p", token.raw), "raw")];
    }
}

/** @param {Token} token @param {number} depth @returns {Node[]} */
function children(token, depth) {
    return (token.tokens ?? []).flatMap((/** @type {Token} */ inner) => nodes(inner, depth + 1));
}

/** @param {Token} token @param {number} depth */
function list(token, depth) {
    const made = element(token.ordered ? "ol" : "ul");
    if (token.ordered && Number.isSafeInteger(token.start) && token.start !== 1) {
        /** @type {HTMLOListElement} */ (made).start = Math.min(token.start, 999_999_999);
    }
    made.append(...token.items.map((/** @type {Token} */ item) => listItem(item, depth)));
    return made;
}

/** @param {Token} item Of a list. @param {number} [depth] The list's. */
export function listItem(item, depth = 0) {
    return withClass(element("li", ...children(item, depth + 1)), item.task ? "task" : "");
}

/** @param {boolean} checked */
function checkbox(checked) {
    const box = /** @type {HTMLInputElement} */ (element("input"));
    box.type = "checkbox";
    box.checked = checked;
    box.disabled = true;
    box.setAttribute("aria-label", checked ? "done" : "to do");
    return box;
}

/** A cell below the header whose text is no longer is not broken into lines. */
const SHORT = 20;

/** @param {string} name @param {Token[]} cells Of a table. @param {number} [depth] The table's. */
export function tableRow(name, cells, depth = 0) {
    const made = cells.map((cell) => {
        const classes = [
            cell.align ? `to-${cell.align}` : "",
            name === "td" && cell.text.length <= SHORT ? "short" : "",
        ];
        return withClass(
            element(name, ...children(cell, depth + 1)),
            classes.filter((each) => each).join(" "),
        );
    });
    return element("tr", ...made);
}

/** @param {Token} token @param {number} depth */
function table(token, depth) {
    const head = tableRow("th", token.header, depth);
    const rows = token.rows.map((/** @type {Token[]} */ cells) => tableRow("td", cells, depth));
    const frame = withClass(
        element("div", element("table", element("thead", head), element("tbody", ...rows))),
        "wide",
    );
    frame.tabIndex = 0; // what can be scrolled must be reached by keys
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table");
    return frame;
}

/**
 * A link where its address is a harmless one, else what would have been its text, and the address.
 * @param {string} address
 * @param {Node[]} content
 * @param {string} [before]
 */
function link(address, content, before = "") {
    const url = URL.canParse(address) ? new URL(address) : null;
    if (url === null || !SCHEMES.has(url.protocol)) {
        return element("span", before, ...content, ` (${address})`);
    }
    const made = /** @type {HTMLAnchorElement} */ (element("a", before, ...content));
    made.href = url.href;
    made.title = url.href;
    made.target = "_blank";
    made.rel = "noopener noreferrer";
    return made;
}

/**
 * Code with its language and a button that copies it (which the page listens to).
 * @param {string} code
 * @param {string} language
 */
function codeBlock(code, language) {
    const name = withClass(
        element("span", decoded(language).split(/\s/)[0].slice(0, 40) || "text"),
        "language",
    );
    const copy = /** @type {HTMLButtonElement} */ (withClass(element("button", "Copy"), "copy-code"));
    copy.type = "button";
    const pre = element("pre", element("code", code));
    pre.tabIndex = 0;
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", "Code");
    pre.dir = "ltr";
    return withClass(element("div", withClass(element("div", name, copy), "code-bar"), pre), "code-block");
}

/** @param {string} name @param {...(Node | string)} content */
function element(name, ...content) {
    const made = document.createElement(name);
    made.append(...content);
    if (name === "p" || name === "li" || /^h\d$/.test(name) || name === "td" || name === "th") {
        made.dir = "auto";
    }
    return made;
}

/** @template {HTMLElement} E @param {E} made @param {string} name @returns {E} */
function withClass(made, name) {
    if (name) {
        made.className = name;
    }
    return made;
}

/** @param {string} content */
function text(content) {
    return document.createTextNode(content);
}
