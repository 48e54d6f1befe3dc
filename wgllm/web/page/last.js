/** What keys do to the last messages of a conversation. */

import { toast } from "./notices.js";
import { branch } from "./tree.js";

/** @typedef {"again" | "editLast" | "copyLast" | "previous" | "next"} Command */

/**
 * @param {Command} command
 * @param {import("./tree.js").Chat} chat
 * @param {import("./log_view.js").LogView} log
 * @param {(act: import("./message_view.js").Act, message: import("./tree.js").Message) => Promise<void>} act
 */
export function onLast(command, chat, log, act) {
    const path = branch(chat);
    const asked = path.findLast(({ role }) => role === "user");
    const said = path.findLast(({ role }) => role === "assistant");
    if (command === "editLast" && asked) {
        log.view(asked.id)?.edit();
    } else if (command === "copyLast" && said) {
        void act("copy", said).then(() => toast("Copied the last reply."));
    } else if (command !== "editLast" && command !== "copyLast" && said) {
        void act(command, said);
    }
}
