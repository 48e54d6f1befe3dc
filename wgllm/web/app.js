/** The page: makes its parts, and tells each of what the others do. */

import { Api } from "./api.js";
import { LocalModel } from "./local_model.js";
import { openCard } from "./page/card_dialog.js";
import { Chats } from "./page/chats.js";
import { Composer } from "./page/composer.js";
import { Compute } from "./page/compute.js";
import { byId } from "./page/dom.js";
import { exportChat, readChats } from "./page/files.js";
import { KeyDialog } from "./page/key_dialog.js";
import { LogView } from "./page/log_view.js";
import { notice, toast } from "./page/notices.js";
import { Panel } from "./page/panel.js";
import { defaults, Kept, Settings } from "./page/settings.js";
import { SettingsDialog } from "./page/settings_dialog.js";
import * as shortcuts from "./page/shortcuts.js";
import { Side } from "./page/side.js";
import { ChatStore, MemoryStore } from "./page/store.js";
import { enter } from "./page/tabs.js";
import { oneLine, sentence } from "./page/text.js";
import { explain, faultOf } from "./page/troubles.js";
import { ServerModel } from "./server_model.js";

/**
 * @import { ModelInfo } from "./model.js"
 * @import { Remedy } from "./page/troubles.js"
 */

/** @param {"localStorage" | "sessionStorage"} name */
function storage(name) {
    try {
        return new Kept(window[name]);
    } catch {
        return new Kept(null); // forbidden to this page
    }
}

const BASE = new URL(".", document.baseURI).href;

class App {
    /** @type {Compute | null} */ compute = null;
    #loadedContext = 0;
    #api = new Api(BASE);
    #settings = new Settings(storage("localStorage"));
    #session = storage("sessionStorage");
    #key = new KeyDialog(this.#session, storage("localStorage"), () => void this.connect());
    #panel = new Panel((remedy) => void this.#remedy(remedy));
    #composer = new Composer(this.#session, {
        onSend: (text) => this.chats.send(text),
        onStop: () => this.chats.stop(),
        onEditLast: () => this.chats.command("editLast"),
    });
    #side = new Side({
        open: (id) => void this.chats.open(id),
        create: () => this.chats.create(),
        rename: (id, title) => void this.chats.rename(id, title),
        remove: (id) => void this.chats.remove(id),
        exportAs: (id, kind) => void this.chats.find(id).then((chat) => chat && exportChat(chat, kind)),
        search: (text) => this.store.search(text),
        importFiles: (files) => void this.chats.take(readChats(files)),
    });
    #dialog = new SettingsDialog(this.#settings, {
        onWhere: (where) => void this.#compute(where),
        onContext: () => void this.#useContext(),
        onSystem: (text) => void this.chats.setSystem(text),
        onKey: () => this.#key.ask(),
    });
    #log = new LogView({
        act: (act, message) => void this.chats.act(act, message),
        edit: (message, text) => this.chats.edit(message, text),
    });
    /** @type {Chats} */ chats;

    /** @param {ChatStore | MemoryStore} store */
    constructor(store) {
        this.store = store;
        this.chats = new Chats({
            store,
            log: this.#log,
            side: this.#side,
            composer: this.#composer,
            settings: this.#settings,
            compute: () => this.compute,
            onShow: (shown) => this.#panel.place(shown),
            onRemedy: (remedy) => this.#remedy(remedy),
        });
        byId("open-settings").addEventListener("click", () => this.openSettings());
        for (const id of ["open-card", "where"]) {
            byId(id).addEventListener("click", () => void openCard(this.compute, LocalModel));
        }
        shortcuts.listen((command) => this.#command(command));
    }

    /** Asks the server for its model, and begins to load it, unless it is that which there is. */
    async connect() {
        const key = this.#key.key;
        this.#api.useKey(key);
        /** @type {ModelInfo} */
        let info;
        try {
            info = await this.#api.json("api/model");
        } catch (error) {
            const fault = faultOf(error);
            if (this.compute?.isUp) {
                toast(explain(fault, this.compute.where).title); // what there is goes on
            } else {
                this.#panel.showFault(fault);
            }
            if (fault.kind === "key") {
                this.#key.ask({ wrong: key !== null });
            }
            return;
        }
        const same = JSON.stringify(info) === JSON.stringify(this.compute?.info);
        if (same && this.compute?.isUp) {
            return;
        }
        this.#settings.useDefaults(defaults(info.sampling));
        this.#composer.setModel(oneLine(info.name || info.id || "the model", 40));
        this.#panel.showModel(info);
        if (info.has_template === false) {
            notice(
                "template",
                "This model has no chat template: it was made to go on with a text, not to answer. The server's option --chat-template can give it one.",
            );
        }
        if (this.compute === null) {
            const compute = new Compute(this.#api, info, {
                gpu: (api) => {
                    this.#loadedContext = this.#contextOf(compute);
                    return new LocalModel(api, {
                        ctxSize: this.#settings.contextFor(compute.info.n_ctx_train),
                    });
                },
                server: (api) => new ServerModel(api),
                obstacle: () => LocalModel.obstacle(),
                stored: () => LocalModel.stored(),
            });
            compute.onChange = () => this.#changed(compute);
            this.compute = compute;
        } else if (!same) {
            this.chats.stop();
            this.compute.info = info;
            const name = oneLine(info.name || info.id || "another one", 80);
            notice("model", `The server has another model now: ${name}. It makes the replies from here on.`);
        }
        await this.compute.choose(this.#settings.where, { ask: true });
    }

    openSettings() {
        const { compute } = this;
        this.#dialog.open({
            system: this.chats.chat.system,
            where: this.#settings.where,
            info: compute?.info ?? null,
        });
    }

    /** @param {Compute} compute */
    #changed(compute) {
        this.#panel.show(compute);
        this.chats.refresh();
        if (compute.phase === "ready") {
            notice("storing", sentence(compute.storeProblem));
        }
    }

    /** @param {"gpu" | "server"} where */
    async #compute(where) {
        this.#settings.where = where;
        this.#dialog.setWhere(where);
        if (this.compute !== null) {
            this.chats.stop();
            // Who asks it to compute here has agreed to what that loads.
            await this.compute.choose(where);
        }
    }

    /** What the card is asked for. @param {Compute} compute */
    #contextOf({ info }) {
        return this.#settings.contextFor(info.n_ctx_train) ?? info.ctx_size;
    }

    /** Loads the card's model anew where another context was chosen. */
    async #useContext() {
        const { compute } = this;
        if (compute?.where === "gpu" && this.#contextOf(compute) !== this.#loadedContext) {
            this.chats.stop();
            await compute.choose("gpu", { ask: compute.phase === "asking" });
        }
    }

    /** @param {Remedy} remedy */
    async #remedy(remedy) {
        const { compute } = this;
        const asked = compute?.phase === "asking" && compute.where === "gpu";
        if (remedy === "server" || (remedy === "gpu" && !asked)) {
            await this.#compute(remedy);
        } else if (remedy === "gpu") {
            await compute?.load();
        } else if (remedy === "key") {
            this.#key.ask({ wrong: this.#key.key !== null });
        } else if (compute?.phase === "loading") {
            compute.cancel();
        } else {
            await this.connect();
        }
    }

    /** @param {shortcuts.Command} command */
    #command(command) {
        switch (command) {
            case "stop":
                return this.chats.stop();
            case "create":
                return this.chats.create();
            case "search":
                return this.#side.focusSearch();
            case "settings":
                return this.openSettings();
            case "write":
                return this.#composer.focus();
            default:
                return this.chats.command(command);
        }
    }
}

async function main() {
    // What nobody caught is told, since a page that just stands still tells nothing.
    const tell = (/** @type {unknown} */ error) =>
        notice(
            "page",
            `Something in this page failed: ${oneLine(faultOf(error).message, 200)}. Reloading may help.`,
        );
    window.addEventListener("error", ({ error, message }) => tell(error ?? message));
    window.addEventListener(
        "unhandledrejection",
        ({ reason }) => reason?.name === "AbortError" || tell(reason),
    );
    enter();
    /** @type {ChatStore | MemoryStore} */
    let store;
    try {
        store = await ChatStore.open();
    } catch {
        store = new MemoryStore();
        notice("keeping", "This browser lets the page keep nothing: chats are gone when the tab closes.");
    }
    const app = new App(store);
    await app.chats.start();
    const connected = app.connect();
    if (new URLSearchParams(location.search).has("test")) {
        Object.assign(window, {
            wgllmPage: {
                app,
                store,
                get model() {
                    return app.compute?.model ?? null;
                },
                get compute() {
                    return app.compute;
                },
            },
        });
    }
    await connected;
}

void main();
