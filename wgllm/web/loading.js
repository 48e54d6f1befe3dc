/**
 * Loads the server's model to the visitor's card: plan, then weights and shaders at the same time, then an engine.
 */

import { KvCache, ringsOf } from "./cache.js";
import { openCard } from "./device.js";
import { Engine, modelError } from "./engine.js";
import { ModelError } from "./errors.js";
import { PlanReplayError } from "./gpu_errors.js";
import { widthOf } from "./plan.js";
import { Runtime } from "./runtime.js";
import { ScheduleSource } from "./schedule_source.js";
import { Store } from "./store.js";
import { Vocabulary } from "./vocabulary.js";
import { loadWeights } from "./weights.js";

/**
 * @import { Api } from "./api.js"
 * @import { Adapter, Card } from "./device.js"
 * @import { CardFacts, LoadProgress, ModelInfo } from "./model.js"
 * @import { Plan, Schedules, Width } from "./plan.js"
 *
 * @typedef {object} Answer The server's to `POST api/plans`.
 * @property {string} id
 * @property {Plan} plan
 * @property {number} ctx_size
 * @property {Record<string, number | null>} windows Of each state, how many positions a row sees; null: all.
 * @property {number} weights_bytes
 * @property {number} gpu_bytes
 *
 * @typedef {object} Options
 * @property {Api} api
 * @property {number | null} ctxSize Null: as the server thinks fit.
 * @property {(progress: LoadProgress) => void} onProgress
 * @property {AbortSignal} signal
 *
 * @typedef {object} Loaded
 * @property {Engine} engine
 * @property {GPUDevice} device
 * @property {CardFacts} facts
 * @property {Api} api
 * @property {(signal?: AbortSignal) => Promise<void>} renew Makes sure that the server has the plan.
 */

/** Less context than this is of no use. */
const LEAST_CONTEXT = 512;

/** How often the server may forget a plan while it is loaded. */
const RENEWALS = 3;

const NO_STORE = "this browser keeps no weights here (a private window?): the next visit fetches them again";

/**
 * Takes less context where the model is too large, or the card has no room.
 * @param {Options} options
 * @returns {Promise<Loaded>}
 */
export async function load(options) {
    const { api, signal } = options;
    const [model, card] = await Promise.all([api.json("api/model", { signal }), openCard()]);
    let { ctxSize } = options;
    let renewals = 0;
    try {
        for (;;) {
            try {
                return await attempt({ ...options, ctxSize }, model, card);
            } catch (error) {
                signal.throwIfAborted();
                const known = error instanceof PlanReplayError ? modelError(error) : error;
                if (known instanceof ModelError && known.code === "unknown_plan" && renewals < RENEWALS) {
                    renewals++; // the server was restarted
                    const now = await api.json("api/model", { signal });
                    if (JSON.stringify(now) !== JSON.stringify(model)) {
                        throw otherModel();
                    }
                    continue;
                }
                ctxSize = smaller(known, ctxSize ?? model.ctx_size);
            }
        }
    } catch (error) {
        card.device.destroy();
        throw error;
    }
}

/** The next context to try after an error, which is thrown where none would help. */
function smaller(/** @type {unknown} */ error, /** @type {number} */ ctxSize) {
    if (!(error instanceof ModelError) || !["too-large", "out-of-memory"].includes(error.kind)) {
        throw error;
    }
    if (ctxSize <= LEAST_CONTEXT) {
        throw new ModelError("too-large", error.message);
    }
    return Math.max(LEAST_CONTEXT, Math.floor(ctxSize / 2));
}

/**
 * @param {Options} options
 * @param {ModelInfo} model
 * @param {Card} card
 * @returns {Promise<Loaded>}
 */
async function attempt(options, model, card) {
    const { api, onProgress } = options;
    const stop = new AbortController();
    const signal = AbortSignal.any([options.signal, stop.signal]);
    onProgress({ stage: "plan", done: 0, total: 1, cached: 0 });
    const answer = await requestPlan(api, card, options.ctxSize, signal);
    onProgress({ stage: "plan", done: 1, total: 1, cached: 0 });
    const { plan } = answer;
    const runtime = await Runtime.create(card.device, plan, { lazy: true });
    try {
        const renew = renewer(api, card, answer);
        const schedules = new ScheduleSource(plan, runtime, scheduleFetcher(api, answer.id, renew));
        const store = await Store.open();
        const total = answer.weights_bytes;
        onProgress({ stage: "weights", done: 0, total, cached: 0 });
        const weights = async () => {
            await store?.begin(model.id);
            const pieces = await loadWeights({
                api,
                path: `api/plans/${answer.id}`,
                total,
                store,
                write: (at, data) => runtime.writeWeights(at, data),
                onProgress: (done, cached) => onProgress({ stage: "weights", done, total, cached }),
                signal,
            });
            runtime.endWeights();
            await store?.keep(model.id, pieces);
        };
        const shaders = async () => {
            const first = firstWidths(plan);
            await schedules.fetched(first);
            await runtime.compile(first, (done, total) => {
                signal.throwIfAborted();
                onProgress({ stage: "shaders", done, total, cached: 0 });
            });
            await schedules.ready(first);
        };
        const vocabulary = async () => {
            const response = await api.fetch("api/vocabulary", { signal });
            return new Vocabulary(await response.arrayBuffer());
        };
        const [words] = await Promise.all([vocabulary(), weights(), shaders()]);
        const cache = new KvCache(ringsOf(plan, answer.windows), answer.ctx_size);
        const { software } = card.adapter;
        const engine = new Engine({
            runtime,
            plan,
            schedules,
            cache,
            vocabulary: words,
            endIds: model.end_ids,
            software,
        });
        const facts = await factsOf(card, answer, store);
        if (!software) {
            warm(schedules, plan).catch(() => {}); // told when it is needed
        }
        return { engine, device: card.device, facts, api, renew };
    } catch (error) {
        stop.abort();
        runtime.destroy();
        throw error;
    }
}

/**
 * @param {Api} api
 * @param {Card} card
 * @param {number | null} ctxSize
 * @param {AbortSignal} [signal]
 * @returns {Promise<Answer>}
 */
function requestPlan(api, { limits, features, adapter }, ctxSize, signal) {
    const wish = { limits, features, subgroup_size: 0, software: adapter.software, ctx_size: ctxSize };
    return api.json("api/plans", { json: wish, signal });
}

function otherModel() {
    return new ModelError("other-model", "the server has another model now");
}

/**
 * Asks for the plan again, which a server that was restarted has forgotten.
 * @param {Api} api
 * @param {Card} card
 * @param {Answer} answer
 * @returns {Loaded["renew"]}
 */
function renewer(api, card, answer) {
    return async (signal) => {
        let made;
        try {
            made = await requestPlan(api, card, answer.ctx_size, signal);
        } catch (error) {
            // What this card and context could have, they have no longer.
            const refused = error instanceof ModelError && ["too-large", "request"].includes(error.kind);
            throw refused ? otherModel() : error;
        }
        if (made.id !== answer.id) {
            throw otherModel();
        }
    };
}

/**
 * Asks for schedules; where the server has forgotten the plan, for that again first.
 * @param {Api} api
 * @param {string} id Of the plan.
 * @param {Loaded["renew"]} renew
 * @returns {(widths: Width[]) => Promise<Schedules>}
 */
function scheduleFetcher(api, id, renew) {
    /** @param {Width[]} widths */
    const ask = (widths) => api.json(`api/plans/${id}/schedules`, { json: { widths } });
    return async (widths) => {
        try {
            return await ask(widths);
        } catch (error) {
            if (!(error instanceof ModelError) || error.code !== "unknown_plan") {
                throw error;
            }
            await renew();
            return ask(widths);
        }
    };
}

/** What any prompt needs, and a token. @param {Plan} plan @returns {Width[]} */
function firstWidths(plan) {
    const bodies = [plan.rows, 1].map((rows) => widthOf(plan, "body", rows, 1));
    const one = /** @type {const} */ (["tail", "greedy", "draw"]).map((part) => widthOf(plan, part, 1));
    return [...bodies, ...one];
}

/**
 * Makes ready what ends of prompts need, one after the other, so that the first ones need not wait for it. Software's
 * cores have better things to do.
 * @param {ScheduleSource} schedules
 * @param {Plan} plan
 */
async function warm(schedules, plan) {
    for (let rows = plan.rows / 2; rows > 1; rows /= 2) {
        await schedules.ready([widthOf(plan, "body", Math.ceil(rows), 1)]);
    }
}

/** @param {Card} card @param {Answer} answer @param {Store | null} store @returns {Promise<CardFacts>} */
async function factsOf(card, answer, store) {
    return {
        where: `${card.name} (WebGPU)`,
        adapter: card.adapter,
        limits: Runtime.requiredLimits(answer.plan),
        features: card.features,
        ctxSize: answer.ctx_size,
        weightsBytes: answer.weights_bytes,
        gpuBytes: answer.gpu_bytes,
        storedBytes: (await store?.bytes().catch(() => 0)) ?? 0,
        plan: answer.id,
        storeProblem: store === null ? NO_STORE : store.problem,
    };
}
