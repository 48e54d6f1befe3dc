/** Speed and context, live, below where one writes. */

import { byId, fillBar } from "./dom.js";
import { count, duration, rate } from "./format.js";
import { branch } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat @typedef {import("./reply.js").Live} Live */

/** A context of which so much is in use is nearly full. */
const NEARLY = 0.85;

/**
 * @param {Chat} chat
 * @param {Live | null} live Of the reply that is generated in it.
 * @param {number} contextSize 0: not known.
 */
export function showFigures(chat, live, contextSize) {
    const last = branch(chat).findLast(({ stats }) => stats && stats.contextUsed > 0);
    // What it does before there is text stands where the text will be.
    const speaks = live !== null && live.stage === "" && live.firstSeconds !== null;
    byId("figures").textContent = speaks ? speedOf(live) : "";
    // Of a prompt only what is not known from before may be read anew.
    const base = Math.max(live?.contextUsed ?? 0, last?.stats?.contextUsed ?? 0);
    const used = base + (live?.tokens ?? 0);
    const size = contextSize || (last?.stats?.contextSize ?? 0);
    const shown = size > 0 && used > 0;
    byId("context").hidden = !shown;
    if (!shown) {
        return;
    }
    const share = Math.min(1, used / size);
    const nearly = share >= NEARLY;
    const percents = nearly ? ` · ${Math.round(share * 100)} % full` : "";
    byId("context-text").textContent = `Context ${count(Math.min(used, size))} / ${count(size)}${percents}`;
    byId("context").classList.toggle("nearly", nearly);
    byId("context").title = nearly ? "When the context is full, replies end: start a new chat before." : "";
    const bar = byId("context-bar");
    bar.ariaValueNow = String(Math.min(used, size));
    bar.ariaValueMax = String(size);
    fillBar(bar, share);
}

/** @param {Live} live */
function speedOf({ rate: speed, tokens, firstSeconds }) {
    const parts = [
        speed === null ? "" : rate(speed),
        `${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`,
        `first after ${duration(firstSeconds ?? 0)}`,
    ];
    return parts.filter((part) => part).join(" · ");
}
