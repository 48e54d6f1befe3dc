/** What follows the end of a reply, beside its text: words for those who hear the page, and what an error means for the model. */

import { announce } from "./notices.js";
import { endsModel, faultOf } from "./troubles.js";

/** So much of a reply is read out. */
const HEARD = 4000;

/**
 * @param {import("./reply.js").Reply} reply
 * @param {import("../model.js").Model | null} used What computed it; null if there was no model.
 * @param {Pick<import("./chats.js").Parts, "log" | "compute" | "onRemedy">} parts
 */
export function tellEnd({ message, error }, used, { log, compute, onRemedy }) {
    if (message.state !== "error") {
        const said = log.view(message.id)?.element.querySelector(":scope > .said");
        announce(said?.textContent?.slice(0, HEARD) || "The reply has ended.");
        return;
    }
    announce("The reply failed.");
    const fault = faultOf(error);
    const now = compute();
    if (used !== null && used.kind === "gpu" && now?.model === used && endsModel(fault)) {
        now.fail(error);
    }
    if (fault.kind === "key") {
        void onRemedy("key");
    } else if (fault.kind === "other-model") {
        void onRemedy("retry"); // asks the server what it has
    }
}
