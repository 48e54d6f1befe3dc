/** The dialog about the graphics card: what it is, what of it is used, what is kept in the browser. */

import { byId, make, openDialog, textButton } from "./dom.js";
import { bytes, count } from "./format.js";
import { sentence, visible } from "./text.js";

/**
 * @typedef {import("./compute.js").Compute} Compute
 * @typedef {import("../store.js").Stored} Stored
 * @typedef {{stored: () => Promise<Stored>, deleteStored: (id?: string | null) => Promise<void>}} Storage Weights in
 *     the browser's storage; null deletes all.
 */

/** @param {Compute | null} compute @param {Storage} storage */
export async function openCard(compute, storage) {
    const body = byId("card-body");
    const place = make("div");
    body.replaceChildren(...content(compute), place);
    openDialog(byId("card"));
    await showStored(place, compute, storage);
}

/** @param {Compute | null} compute @returns {Node[]} */
function content(compute) {
    if (compute === null) {
        return [make("p", { className: "hint" }, "Nothing is loaded on the graphics card.")];
    }
    const { phase, facts, info } = compute;
    const model = section(
        "Model",
        list([
            ["Name", info.name],
            ["Architecture", info.architecture],
            ["Quantization", info.quantization],
            ["Licence", info.license || "not stated"],
            ["Context of its training", info.n_ctx_train ? `${count(info.n_ctx_train)} tokens` : null],
            ["Server", info.version ? `wgllm ${info.version}` : null],
        ]),
    );
    if (phase !== "ready" || facts === null) {
        return [make("p", { className: "hint" }, "Nothing is loaded on the graphics card."), model];
    }
    if (!("adapter" in facts)) {
        return [
            section(
                "Computed by the server",
                list([
                    ["On", facts.where],
                    ["Context", `${count(facts.ctxSize)} tokens`],
                ]),
            ),
            model,
        ];
    }
    const { adapter, limits, features } = facts;
    return [
        section(
            "Card",
            list([
                ["Runs on", facts.where],
                ["Vendor", adapter.vendor],
                ["Architecture", adapter.architecture],
                ["Description", adapter.description],
                ["Kind", adapter.software ? "software that imitates a card: slow" : null],
                ["On the card", bytes(facts.gpuBytes)],
                ["Of it weights", bytes(facts.weightsBytes)],
                ["Context", `${count(facts.ctxSize)} tokens`],
                ["Features used", features.length > 0 ? features.join(", ") : "none beyond WebGPU's own"],
            ]),
        ),
        model,
        section(
            "Limits that are asked of it",
            list(
                Object.entries(limits).map(([name, value]) => [name, count(value)]),
                "table numbers",
            ),
        ),
    ];
}

/** @param {HTMLElement} place @param {Compute | null} compute @param {Storage} storage */
async function showStored(place, compute, storage) {
    const found = await storage.stored().catch(() => null);
    if (found === null) {
        return;
    }
    const { models, bytes: all } = found;
    // Pieces of a load that did not end belong to no model yet.
    const rest = all - models.reduce((sum, each) => sum + each.bytes, 0);
    const problem = sentence(compute?.storeProblem ?? "");
    const why = problem === "" ? ", so that the next visit starts sooner" : "";
    const words = all > 0 ? `${bytes(all)} of weights are kept${why}.` : "No weights are kept.";
    /** @param {string} label @param {string} name @param {string | null} id */
    const button = (label, name, id) => {
        const made = textButton(label, "quiet", async () => {
            made.disabled = true;
            try {
                await storage.deleteStored(id);
                await showStored(place, compute, storage);
                place
                    .querySelector("p")
                    ?.append(" Deleted. What is on the card stays until the page closes.");
                (place.querySelector("button") ?? place.closest("dialog")?.querySelector("button"))?.focus();
            } catch (error) {
                made.disabled = false;
                const said = error instanceof Error ? error.message : String(error);
                place.append(make("p", { role: "alert" }, `Could not be deleted: ${visible(said)}`));
            }
        });
        made.ariaLabel = name;
        return made;
    };
    const rows = models.map(({ id, bytes: size }) => {
        const name = visible(id);
        return make(
            "div",
            { className: "stored" },
            make("span", { dir: "auto" }, `${name} · ${bytes(size)}`),
            button("Delete", `Delete the weights of ${name}`, id),
        );
    });
    if (all > 0 && (models.length !== 1 || rest > 0)) {
        rows.push(
            make(
                "div",
                { className: "buttons" },
                button("Delete all stored weights", "Delete all stored weights", null),
            ),
        );
    }
    place.replaceChildren(
        section(
            "In this browser's storage",
            make(
                "div",
                {},
                make("p", {}, words),
                ...(problem === "" ? [] : [make("p", { className: "problem" }, problem)]),
                ...rows,
            ),
        ),
    );
}

/** @param {string} title @param {Node} content */
function section(title, content) {
    return make("section", {}, make("h3", {}, title), content);
}

/** @param {[string, unknown][]} entries Those without a value are left out. @param {string} [className] */
function list(entries, className = "table") {
    const shown = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return make(
        "dl",
        { className },
        ...shown.flatMap(([name, value]) => [
            make("dt", {}, name),
            make("dd", { dir: "auto" }, visible(String(value))),
        ]),
    );
}
