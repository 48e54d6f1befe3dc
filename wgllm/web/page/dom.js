/** Making and finding elements. Text goes in as text; there is no way to put HTML in. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} name
 * @param {Record<string, string | number | boolean>} [properties] Of the element, as `className` or `disabled`;
 *     those with a dash, and `role`, are attributes.
 * @param {...(Node | string | null)} content
 * @returns {any}
 */
export function make(name, properties = {}, ...content) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
        if (key === "role" || /^(aria|data)-/.test(key)) {
            made.setAttribute(key, String(value));
        } else {
            Object.assign(made, { [key]: value });
        }
    }
    made.append(...content.filter((part) => part !== null));
    return made;
}

/** A sign of the page's set, which `index.html` holds. @param {string} name */
export function icon(name) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", "icon");
    svg.setAttribute("aria-hidden", "true");
    const use = document.createElementNS(SVG, "use");
    use.setAttribute("href", `#i-${name}`);
    svg.append(use);
    return svg;
}

/**
 * A button that shows a sign, and says what it does to those who point at it or hear it.
 * @param {string} sign
 * @param {string} label
 * @param {() => void} onClick
 * @returns {HTMLButtonElement}
 */
export function iconButton(sign, label, onClick) {
    const button = make("button", { type: "button", title: label, "aria-label": label }, icon(sign));
    button.addEventListener("click", onClick);
    return button;
}

/** @param {string} label @param {string} className @param {() => void} onClick @returns {HTMLButtonElement} */
export function textButton(label, className, onClick) {
    const button = make("button", { type: "button", className }, label);
    button.addEventListener("click", onClick);
    return button;
}

/** The element of `index.html` with this id. @param {string} id @returns {any} */
export function byId(id) {
    const found = document.getElementById(id);
    if (found === null) {
        throw new Error(`index.html has no #${id}`);
    }
    return found;
}

/** Opens a dialog, whose buttons `data-close` and backdrop close it. @param {HTMLDialogElement} dialog */
export function openDialog(dialog) {
    if (dialog.open) {
        return;
    }
    dialog.onclick = ({ target }) => {
        if (target === dialog || (target instanceof Element && target.closest("[data-close]"))) {
            dialog.close();
        }
    };
    // The browser gives the focus back to where it was, if that is still there.
    dialog.onclose = () => isLost() && focusField(byId("input"));
    dialog.showModal();
}

/** Focuses a field where keys are at hand; elsewhere that would bring up a keyboard over half the screen. @param {HTMLElement} field */
export function focusField(field) {
    if (!matchMedia("(pointer: coarse)").matches) {
        field.focus();
    }
}

/** Whether keys go nowhere: what had the focus is gone, or is not to be seen. */
function isLost() {
    const held = document.activeElement;
    return held === null || held === document.body || !held.checkVisibility({ visibilityProperty: true });
}

/**
 * Changes what is in an element, and focuses a button of the same name where the one that had the focus is gone.
 * @param {HTMLElement} box
 * @param {() => void} change
 * @param {() => void} [elsewhere] What is done where there is none.
 */
export function keepFocus(box, change, elsewhere = () => focusField(byId("input"))) {
    const held = box.contains(document.activeElement) ? document.activeElement : null;
    change();
    if (held !== null && isLost()) {
        /** @type {NodeListOf<HTMLElement>} */
        const buttons = box.querySelectorAll("button:enabled");
        Array.from(buttons)
            .find((button) => nameOf(button) === nameOf(held))
            ?.focus();
        if (isLost()) {
            elsewhere();
        }
    }
}

/** @param {Element} button */
function nameOf(button) {
    return button.ariaLabel ?? button.textContent;
}

/** Makes these the children of an element; those that are in their place already are not touched. @param {Element} parent @param {Node[]} nodes */
export function place(parent, nodes) {
    const wanted = new Set(nodes);
    for (const child of Array.from(parent.childNodes)) {
        if (!wanted.has(child)) {
            child.remove();
        }
    }
    let next = parent.firstChild;
    for (const node of nodes) {
        if (node === next) {
            next = next.nextSibling;
        } else {
            parent.insertBefore(node, next);
        }
    }
}

/** Calls it with the next frame, however often it is asked for until then. @param {() => void} act @returns {() => void} */
export function eachFrame(act) {
    let waits = false;
    return () => {
        if (!waits) {
            waits = true;
            requestAnimationFrame(() => {
                waits = false;
                act();
            });
        }
    };
}

/** A bar that is `share` full. @param {HTMLElement} bar @param {number} share */
export function fillBar(bar, share) {
    const inner = /** @type {HTMLElement} */ (bar.firstElementChild);
    inner.style.transform = `scaleX(${Math.max(0, Math.min(1, share))})`;
}

/** Puts text on the clipboard; false where the browser lets no page do it. @param {string} text */
export async function copyText(text) {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        // There is no clipboard for pages of plain http from another machine: the old way.
    }
    const field = make("textarea", { value: text, className: "unseen", "aria-hidden": "true" });
    const focused = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (focused instanceof HTMLElement) {
        focused.focus();
    }
    return done;
}

/** Gives the visitor a file. @param {string} name @param {string} text @param {string} type */
export function saveFile(name, text, type) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
