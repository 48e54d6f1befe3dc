/** Chats out of the page as files, and into it. */

import { saveFile } from "./dom.js";
import { toast } from "./notices.js";
import { fileName, oneLine } from "./text.js";
import { fromJson, ImportFault, toJson, toMarkdown } from "./transfer.js";

/** @typedef {import("./tree.js").Chat} Chat */

/** The largest file that is read as a chat. */
const MAX_IMPORT = 64 << 20;

/** @param {Chat} chat @param {"md" | "json"} kind */
export function exportChat(chat, kind) {
    const text = kind === "md" ? toMarkdown(chat) : toJson(chat);
    saveFile(fileName(chat.title, kind), text, kind === "md" ? "text/markdown" : "application/json");
}

/** The chats in files; what is none is told. @param {File[]} files @returns {AsyncGenerator<Chat>} */
export async function* readChats(files) {
    for (const file of files) {
        try {
            if (file.size > MAX_IMPORT) {
                throw new ImportFault("the file is larger than 64 MiB");
            }
            yield fromJson(await file.text());
        } catch (error) {
            const said = error instanceof ImportFault ? error.message : "it can't be read";
            toast(`${oneLine(file.name, 40)} was not imported: ${oneLine(said, 200)}.`);
        }
    }
}
