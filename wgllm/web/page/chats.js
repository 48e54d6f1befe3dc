/** The conversations: what is open, what is asked, what is generated, what is kept. */

import * as address from "./address.js";
import { copyText, eachFrame } from "./dom.js";
import { showFigures } from "./figures.js";
import { tellEnd } from "./endings.js";
import { Keeper } from "./keeper.js";
import { onLast } from "./last.js";
import { toast } from "./notices.js";
import { Reply } from "./reply.js";
import { tab, Watch } from "./tabs.js";
import { oneLine, visible } from "./text.js";
import { addMessage, childrenOf, merged, newChat, show, turns } from "./tree.js";

/**
 * @typedef {import("./tree.js").Chat} Chat
 * @typedef {import("./tree.js").Message} Message
 * @typedef {{
 *     store: import("./store.js").ChatStore | import("./store.js").MemoryStore, log: import("./log_view.js").LogView,
 *     side: import("./side.js").Side, composer: import("./composer.js").Composer,
 *     settings: import("./settings.js").Settings, compute: () => import("./compute.js").Compute | null,
 *     onShow: (shown: {empty: boolean, told: boolean}) => void, onRemedy: (remedy: import("./troubles.js").Remedy) => Promise<void>,
 * }} Parts `compute`: null before the server has answered; `told`: the last reply tells of an error.
 */

export class Chats {
    /** @type {Chat} */ chat;
    /** @type {{reply: Reply, chat: Chat, done: Promise<void>} | null} */ #running = null;
    #parts;
    #keeper;
    #asked = 0;
    #refreshSoon = eachFrame(() => this.refresh());
    #watch = new Watch((id) => void this.#reread(id));

    /** @param {Parts} parts */
    constructor(parts) {
        this.#parts = parts;
        this.#keeper = new Keeper(parts.store, (summaries) => parts.side.show({ summaries }));
        this.chat = this.#new();
        parts.store.onChange = (id) => void this.#reread(id);
        address.listen((id) => id !== this.chat.id && void this.#openNamed(id));
        window.addEventListener("beforeunload", (event) => this.busy && event.preventDefault());
    }

    get busy() {
        return this.#running !== null;
    }

    /** Opens the chat that the address names, if there is one. */
    async start() {
        await this.#keeper.list();
        await this.#openNamed(address.named());
    }

    /** Opens a new chat, unless the open one is new. */
    create() {
        this.#asked++;
        if (this.chat.revision > 0 || this.chat.leaf !== null) {
            this.#enter(this.#new(), { step: true });
        }
        this.#parts.composer.focus();
    }

    /**
     * Opens a chat, unless another is asked for while it is read. False: there is none of this name.
     * @param {string} id
     * @param {{step?: boolean}} [options] `step`: the browser's Back undoes it.
     */
    async open(id, { step = true } = {}) {
        const asked = ++this.#asked;
        const running = this.#running?.chat;
        const chat = running?.id === id ? running : await this.#keeper.read(id);
        if (chat === null) {
            return false;
        }
        if (asked === this.#asked) {
            this.#enter(chat, { step });
        }
        return true;
    }

    /** Asks, in the chat that is open. @param {string} text @returns {boolean} Whether it was asked. */
    send(text) {
        return this.#ask(this.chat.leaf, text);
    }

    /** Asks something else in the place of a message. @param {Message} message @param {string} text @returns {boolean} Whether it was asked. */
    edit(message, text) {
        const asked = this.#ask(message.parent, text);
        if (asked) {
            this.#parts.composer.focus();
        }
        return asked;
    }

    stop() {
        this.#running?.reply.stop();
    }

    /** @param {import("./message_view.js").Act} act @param {Message} message */
    async act(act, message) {
        const { chat } = this;
        const siblings = childrenOf(chat, message.parent).map(({ id }) => id);
        const at = siblings.indexOf(message.id);
        switch (act) {
            case "copy":
                if (!(await copyText(visible(message.content)))) {
                    toast("The browser lets this page copy nothing.");
                }
                return;
            case "previous":
            case "next":
                this.#turnTo(siblings[at + (act === "next" ? 1 : -1)]);
                return;
            case "new-chat":
                return this.create();
            case "key":
                return this.#parts.onRemedy("key");
            case "server":
            case "gpu":
                await this.#parts.onRemedy(act);
                if (this.#parts.compute()?.phase !== "ready") {
                    return; // it was cancelled, or failed again
                }
                break;
        }
        // Meanwhile another chat may have been opened.
        if (chat === this.chat && this.#mayAsk()) {
            await this.#reply(chat, message.parent, { jump: false });
        }
    }

    /** What keys do to the last messages. @param {import("./last.js").Command} command */
    command(command) {
        onLast(command, this.chat, this.#parts.log, (act, message) => this.act(act, message));
    }

    /** @param {string} text Of the chat that is open. */
    async setSystem(text) {
        if (text !== this.chat.system) {
            this.chat.system = text;
            await this.#keeper.saveIfKept(this.chat);
        }
    }

    /** @param {string} id @param {string} title */
    async rename(id, title) {
        const chat = await this.find(id);
        if (chat !== null) {
            Object.assign(chat, { title: oneLine(title, 200), named: true });
            await this.#save(chat);
            this.#showTitle();
        }
    }

    /** @param {string} id */
    async remove(id) {
        const chat = await this.find(id);
        if (chat === null) {
            return;
        }
        if (this.#running?.chat.id === id) {
            this.stop();
            await this.#running.done;
        }
        await this.#parts.store.remove(id);
        const wasOpen = this.chat.id === id;
        if (wasOpen) {
            this.#enter(this.#new());
        }
        await this.#keeper.list();
        toast(`Deleted “${oneLine(chat.title, 30) || "New chat"}”`, {
            label: "Undo",
            act: async () => {
                chat.revision = 0;
                await this.#save(chat);
                if (wasOpen && this.chat.leaf === null) {
                    await this.open(id, { step: false });
                }
            },
        });
    }

    /** Keeps chats that came from elsewhere. @param {AsyncIterable<Chat>} chats */
    async take(chats) {
        for await (const chat of chats) {
            await this.#save(chat);
            await this.open(chat.id);
        }
    }

    /** Shows figures anew, where the context's size has become known. */
    refresh() {
        const live = this.#running?.chat === this.chat ? this.#running.reply.live : null;
        showFigures(this.chat, live, this.#parts.compute()?.facts?.ctxSize ?? 0);
    }

    #mayAsk() {
        if (this.#running !== null) {
            toast(
                this.#running.chat === this.chat
                    ? "Stop the reply that is being written first."
                    : "A reply is still being written in another chat.",
                { label: "Stop it", act: () => this.stop() },
            );
            return false;
        }
        if (this.#parts.compute() === null) {
            toast("There is no connection to the server yet.");
            return false;
        }
        return true;
    }

    /** @param {string | null} parent @param {string} text */
    #ask(parent, text) {
        if (!this.#mayAsk()) {
            return false;
        }
        this.#asked++; // whoever writes here stays here
        const { id } = addMessage(this.chat, parent, { role: "user", content: text });
        this.#parts.composer.belong(this.chat.id);
        void this.#reply(this.chat, id, { jump: true });
        return true;
    }

    /** @param {Chat} chat The open one. @param {string | null} parent The message to answer. @param {{jump: boolean}} how */
    async #reply(chat, parent, { jump }) {
        const { side, composer, settings } = this.#parts;
        const compute = /** @type {import("./compute.js").Compute} */ (this.#parts.compute());
        const messages = turns(chat, parent);
        const message = addMessage(chat, parent, {
            role: "assistant",
            content: "",
            state: "partial",
            owner: tab,
            touched: Date.now(),
            model: compute.info.id,
            where: compute.where,
        });
        chat.model ||= compute.info.id;
        const reply = new Reply(message, {
            onUpdate: () => this.#showReply(reply, chat),
            save: () => void this.#save(chat),
        });
        /** @type {import("../model.js").Model | null} */
        let used = null;
        const saved = this.#save(chat);
        const ready = async (/** @type {AbortSignal} */ signal) => {
            await saved;
            used = await compute.ready(signal);
            message.where = used.kind;
            return used;
        };
        const done = reply.run(ready, messages, settings.sampling);
        this.#running = { reply, chat, done };
        this.#showChat({ jump });
        composer.setBusy(true);
        side.show({ busy: chat.id });
        await done;
        this.#running = null;
        composer.setBusy(false);
        side.show({ busy: "" });
        if (chat === this.chat) {
            this.#showChat();
        }
        tellEnd(reply, used, this.#parts);
    }

    /** @param {Reply} reply @param {Chat} chat */
    #showReply(reply, chat) {
        if (chat === this.chat) {
            this.#parts.log.update(reply.message, reply.message.state === "partial" ? reply.live : null);
        }
        this.#refreshSoon();
    }

    /** @param {string | undefined} id Of a message. */
    #turnTo(id) {
        if (id !== undefined) {
            show(this.chat, id);
            this.#showChat();
            void this.#keeper.saveIfKept(this.chat);
        }
    }

    #new() {
        return newChat({ system: this.#parts.settings.system });
    }

    /** @param {Chat} chat @param {{step?: boolean}} [options] */
    #enter(chat, options) {
        const isNew = chat.revision === 0 && chat.leaf === null;
        this.#asked++;
        this.chat = chat;
        address.name(chat.revision > 0 ? chat.id : "", options);
        this.#parts.composer.enter(isNew ? "" : chat.id);
        this.#showChat({ jump: true });
        this.#parts.side.show({ open: chat.id });
        this.#watch.over(chat);
        this.#parts.composer.focus();
    }

    /** @param {{jump?: boolean}} [how] */
    #showChat(how) {
        const { messages, leaf } = this.chat;
        this.#parts.onShow({ empty: leaf === null, told: messages[leaf ?? ""]?.state === "error" });
        const running = this.#running?.chat === this.chat ? this.#running.reply : null;
        this.#parts.log.show(this.chat, { ...how, running });
        this.#showTitle();
        this.refresh();
    }

    #showTitle() {
        address.title(visible(this.chat.title) || "New chat");
    }

    /** @param {string} id Empty: none is named. */
    async #openNamed(id) {
        if (id !== "") {
            const opened = this.open(id, { step: false });
            const asked = this.#asked;
            if (await opened) {
                return;
            }
            toast("The chat of this address is not kept in this browser.");
            if (asked !== this.#asked) {
                return;
            }
        }
        this.#enter(this.#new());
    }

    /** Another tab has written or deleted a chat, or is gone. @param {string} id */
    async #reread(id) {
        await this.#keeper.list();
        if (id !== this.chat.id || this.#running?.chat === this.chat) {
            return;
        }
        const stored = await this.#keeper.read(id);
        if (stored !== null && this.chat.id === id && stored.revision > this.chat.revision) {
            Object.assign(this.chat, merged(stored, this.chat));
            if (this.chat.leaf !== null) {
                show(this.chat, this.chat.leaf); // goes on to what was added below
            }
            this.#showChat();
        }
        this.#watch.over(this.chat);
    }

    /** @param {string} id */
    async find(id) {
        return id === this.chat.id
            ? this.chat
            : id === this.#running?.chat.id
              ? this.#running.chat
              : this.#parts.store.get(id);
    }

    /** @param {Chat} chat */
    async #save(chat) {
        const kept = await this.#keeper.save(chat);
        if (kept && chat === this.chat) {
            address.name(chat.id);
        }
    }
}
