/**
 * What computes replies, and what is said of it: the interface of `LocalModel` (the visitor's card) and `ServerModel`.
 * Types only.
 *
 * @import { Adapter } from "./device.js"
 * @import { ModelError } from "./errors.js"
 *
 * @typedef {object} Model
 * @property {"gpu" | "server"} kind
 * @property {(options?: {onProgress?: (progress: LoadProgress) => void, signal?: AbortSignal}) => Promise<Facts>} load
 *     May be called again, after an error or not. An abort is thrown as it is.
 * @property {(messages: Message[], sampling: Sampling, options?: {signal?: AbortSignal}) => AsyncIterable<ModelEvent>}
 *     generate An abort ends it with reason `cancelled`, and what was generated stays; errors are ModelErrors.
 * @property {((error: ModelError) => void) | null} onLost Called when the card is lost while nothing runs.
 * @property {() => void} close
 * @property {((facts: Facts) => void) | null} [onFacts] Called where `load` could not tell all of them yet.
 *
 * @typedef {object} Message
 * @property {string} role
 * @property {string} content
 * @property {number[]} [tokenIds] What a reply was made of.
 *
 * @typedef {object} Sampling As in `wgllm/sampling/params.py`.
 * @property {number} temperature 0 or less takes the likeliest token.
 * @property {number} topK
 * @property {number} topP
 * @property {number} minP
 * @property {number | null} seed Null draws a fresh one.
 * @property {number | null} maxTokens Null: until the reply ends or the context is full.
 *
 * @typedef {{type: "progress", stage: "download" | "weights" | "queue" | "prefill", done: number, total: number,
 *     label?: string, cached?: number}} Progress Before the first token; prefill counts tokens, `cached` those of the
 *     prompt before, which need not be read.
 * @typedef {{type: "text", text: string, token: number | null}} Text May be empty; `token`: null for what is left at
 *     the end.
 * @typedef {{type: "end", reason: Reason, stats: Stats}} End
 * @typedef {Progress | Text | End} ModelEvent
 *
 * @typedef {"stop" | "length" | "context" | "cancelled"} Reason
 *
 * @typedef {object} Stats Counts, and times in seconds.
 * @property {number} promptTokens
 * @property {number} cachedTokens Of the prompt, those that the cache still held.
 * @property {number} generatedTokens
 * @property {number} prefillSeconds Until the first token.
 * @property {number} decodeSeconds From the first token to the last.
 * @property {number} contextUsed
 * @property {number} contextSize
 * @property {number | bigint | null} seed Null where the server drew one.
 *
 * @typedef {{stage: "plan" | "weights" | "shaders", done: number, total: number, cached: number}} LoadProgress Bytes of
 *     weights (`cached`: of them from the browser's storage), counts of shaders.
 *
 * @typedef {CardFacts | ServerFacts} Facts
 *
 * @typedef {object} ServerFacts
 * @property {string} where For people.
 * @property {number} ctxSize
 *
 * @typedef {object} CardFacts
 * @property {string} where
 * @property {number} ctxSize
 * @property {Adapter} adapter
 * @property {Record<string, number>} limits What the plan uses.
 * @property {string[]} features
 * @property {number} weightsBytes
 * @property {number} gpuBytes
 * @property {number} storedBytes Of all models, in the browser's storage.
 * @property {string} plan Its id on the server.
 * @property {string | null} storeProblem Why the weights are not kept there.
 *
 * @typedef {object} ModelInfo What `GET /api/model` answers.
 * @property {string} id
 * @property {string} name
 * @property {string} architecture
 * @property {string} quantization
 * @property {number} parameters
 * @property {number} nbytes
 * @property {string | null} license
 * @property {number} n_ctx_train
 * @property {number} vocab_size
 * @property {number[]} end_ids Tokens that end a reply.
 * @property {boolean} has_template
 * @property {boolean} has_system Whether the template renders a system message.
 * @property {{temperature: number, top_k: number, top_p: number, min_p: number}} sampling
 * @property {number} ctx_size What a plan gets unless asked.
 * @property {string} version
 */

export {};
