/** The dialog about the graphics card: what it is, what of it is used, what is kept in the browser. */

import { byId, make, openDialog, textButton } from "./dom.js";
import { bytes, count } from "./format.js";
import { visible } from "./text.js";

/** @typedef {import("./compute.js").Compute} Compute */

/** @param {Compute} compute */
export async function openCard(compute) {
    const body = byId("card-body");
    body.replaceChildren(...content(compute));
    openDialog(byId("card"));
    const model = compute.model;
    if (model?.storedBytes) {
        const stored = await model.storedBytes().catch(() => null);
        if (stored !== null) {
            body.append(storage(compute, stored));
        }
    }
}

/** @param {Compute} compute @returns {Node[]} */
function content({ phase, facts, info }) {
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

/** @param {Compute} compute @param {number} stored */
function storage(compute, stored) {
    const words = make(
        "p",
        {},
        stored > 0
            ? `${bytes(stored)} of weights are kept, so that the next visit starts at once.`
            : "No weights are kept.",
    );
    const box = section("In this browser's storage", words);
    if (stored > 0) {
        const button = textButton("Delete the stored weights", "quiet", async () => {
            button.disabled = true;
            try {
                await compute.model?.deleteStored?.();
                words.textContent = "Deleted. What is on the card stays until the page closes.";
                button.remove();
            } catch (error) {
                button.disabled = false;
                words.textContent = `Could not be deleted: ${visible(error instanceof Error ? error.message : String(error))}`;
            }
        });
        box.append(make("div", { className: "buttons" }, button));
    }
    return box;
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
