/** What a visitor is told when something fails: what happened, and what to do. */

/**
 * @typedef {{kind: string, message: string}} Fault A ModelError, or what was kept of one.
 * @typedef {"server" | "gpu" | "retry" | "key" | "new-chat"} Remedy
 * @typedef {{short: string, title: string, text: string, remedies: Remedy[]}} Trouble `short`: for a heading.
 */

/** @type {Record<Remedy, string>} */
export const REMEDIES = {
    server: "Compute on the server instead",
    gpu: "Try the card again",
    retry: "Try again",
    key: "Enter the key",
    "new-chat": "Start a new chat",
};

/** @type {Record<string, Trouble>} */
const TROUBLES = {
    "no-webgpu": {
        short: "No WebGPU",
        title: "This browser has no WebGPU",
        text: "Current versions of Chrome, Edge, Safari and Firefox have it; in some it must be switched on first. Until then the server can compute the replies.",
        remedies: ["server", "retry"],
    },
    insecure: {
        short: "No graphics card",
        title: "The browser hides the graphics card from this page",
        text: "Browsers offer WebGPU to pages of this machine and to encrypted ones only, and this one came over plain http from another machine. Start the server with --tls, and open the page with https://. Until then the server can compute the replies.",
        remedies: ["server"],
    },
    "no-adapter": {
        short: "No graphics card",
        title: "The browser offers no graphics card",
        text: "It may be blocked, or its driver too old: chrome://gpu or about:support tell more. The server can compute the replies meanwhile.",
        remedies: ["server", "gpu"],
    },
    "too-large": {
        short: "Model too large",
        title: "The model is too large for this graphics card",
        text: "A smaller quantization of it may fit. The server can compute the replies instead.",
        remedies: ["server"],
    },
    "out-of-memory": {
        short: "Card full",
        title: "The graphics card has not enough memory left",
        text: "Close other tabs and programs that use it and try again, or let the server compute the replies.",
        remedies: ["gpu", "server"],
    },
    lost: {
        short: "Card lost",
        title: "The graphics card was lost",
        text: "Its driver was restarted, or it was taken away from this page. What was written so far is kept; the model must be loaded once more.",
        remedies: ["gpu", "server"],
    },
    shader: {
        short: "Shader refused",
        title: "The browser refused a shader",
        text: "It can't run this model on this card. A newer browser or driver may; the server can compute the replies.",
        remedies: ["server", "gpu"],
    },
    numbers: {
        short: "Card failed",
        title: "The card computed something that is no number",
        text: "The model or the card's driver may be faulty. Try again, or compare with the server.",
        remedies: ["retry", "server"],
    },
    context: {
        short: "Context full",
        title: "The conversation is longer than the context",
        text: "Start a new chat, go back to an earlier message and edit it, or take a larger context: in the settings for this device's card, by --ctx-size for the server.",
        remedies: ["new-chat"],
    },
    request: { short: "Failed", title: "That can't be computed", text: "", remedies: ["retry"] },
    network: {
        short: "Server not reachable",
        title: "The server can't be reached",
        text: "It may have been stopped, or the network is gone.",
        remedies: ["retry"],
    },
    key: {
        short: "Key wanted",
        title: "The server wants another key",
        text: "Whoever runs the server knows it.",
        remedies: ["key"],
    },
    busy: {
        short: "Server busy",
        title: "The server is busy",
        text: "Others wait for it already. Try again in a moment.",
        remedies: ["retry"],
    },
    server: {
        short: "Server failed",
        title: "The server failed",
        text: "Its window or log tells more. It starts its engine again by itself.",
        remedies: ["retry"],
    },
    "other-model": {
        short: "Another model",
        title: "The server has another model now",
        text: "The model that was loaded here is no longer there. What was written is kept; the new one can go on with it.",
        remedies: ["retry"],
    },
    page: {
        short: "Page failed",
        title: "Something in this page failed",
        text: "Reload it; the conversation is kept.",
        remedies: ["retry"],
    },
};

const STILL_NEEDED =
    "The graphics card computes, but the server splits text into tokens: without it no reply can begin.";

/**
 * @param {Fault} fault
 * @param {"gpu" | "server"} where Where it was computed.
 * @returns {Trouble}
 */
export function explain(fault, where) {
    const trouble = Object.hasOwn(TROUBLES, fault.kind) ? TROUBLES[fault.kind] : TROUBLES.page;
    const remedies = trouble.remedies.filter((remedy) => remedy !== "server" || where === "gpu");
    const text =
        fault.kind === "network" && where === "gpu" ? `${trouble.text} ${STILL_NEEDED}` : trouble.text;
    return { ...trouble, text, remedies };
}

/** An error as it can be kept. @param {unknown} error @returns {Fault} */
export function faultOf(error) {
    if (error instanceof Error && "kind" in error && typeof error.kind === "string") {
        return { kind: error.kind, message: error.message };
    }
    const said = error instanceof Error ? error.message : String(error);
    return { kind: "page", message: said.replace(/\s+/g, " ").trim() };
}

/** Whether a model on the card can't go on after it. @param {Fault} fault */
export function endsModel(fault) {
    return [
        "lost",
        "out-of-memory",
        "shader",
        "no-adapter",
        "no-webgpu",
        "insecure",
        "too-large",
        "other-model",
    ].includes(fault.kind);
}
