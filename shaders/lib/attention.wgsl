// What the kernels of fused attention share: y[r, h] = Σ_c softmax_c(scores of the cells that row r sees) · v[c], where
// score c is cap(SCALE · q[r, h] · k[c]), without ever storing the scores.
//
// A kernel that includes this is composed with kv/<type>.wgsl twice, words renamed: for keys (`k`, `k_at`, `k_scale`,
// `K_SCALES`) and for values (`v`, …). Bindings:
//   0  q         f32 [ROWS, HEADS, HEAD_DIM]
//   1  k         keys [slots, KV_HEADS, CELLS, HEAD_DIM]
//   2  v         values, likewise
//   3  cell_pos  i32 [slots, CELLS]
//   4  pos       i32 [ROWS]
//   5  slot      i32 [ROWS]
//   6  y         f32 [ROWS, HEADS, HEAD_DIM], or what attention_reduce makes that of
// The first SEEN of the CELLS are looked at, SPLIT by each piece of work: a head of a row has as many results as there
// are splits. One is the final one. Of several each has QUADS + 1 vectors of 4 in y: Σ exp(score - largest) · v, and
// (largest, Σ exp(score - largest), 0, 0). HEAD_DIM is a multiple of 4. WINDOW, SOFTCAP 0: there is none.
// A row that sees nothing gets 0.
//!const ROWS: u32
//!const HEADS: u32
//!const KV_HEADS: u32
//!const HEAD_DIM: u32
//!const CELLS: u32
//!const SEEN: u32
//!const SPLIT: u32
//!const SCALE: f32
//!const SOFTCAP: f32 = 0.0
//!include "lib/hidden.wgsl"
//!include "lib/math.wgsl"
//!include "lib/sees.wgsl"

const_assert HEAD_DIM % 4u == 0u;
const_assert HEADS % KV_HEADS == 0u;
const_assert SEEN <= CELLS;

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> cell_pos: array<i32>;
@group(0) @binding(4) var<storage, read> pos: array<i32>;
@group(0) @binding(5) var<storage, read> slot: array<i32>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;

const GROUP: u32 = HEADS / KV_HEADS;  // query heads that share keys and values
const QUADS: u32 = HEAD_DIM / 4u;
const SPLITS: u32 = (SEEN + SPLIT - 1u) / SPLIT;

// The score of a cell that is seen, from q · k.
fn score_of(product: f32) -> f32 {
    let score = product * SCALE;
    if (SOFTCAP == 0.0) {
        return score;
    }
    return SOFTCAP * safe_tanh(score / max(SOFTCAP, 1e-30));
}

// exp(scores - largest), 0 where a score is HIDDEN: largest may be so too.
fn weights_of(scores: vec4<f32>, largest: f32) -> vec4<f32> {
    return select(exp(scores - largest), vec4<f32>(), scores == vec4<f32>(HIDDEN));
}

// Stores four numbers of the result of a split: `sum` of weights, `values` weighted.
fn put_result(r: u32, head: u32, split: u32, quad: u32, largest: f32, sum: f32, values: vec4<f32>) {
    let at = (r * HEADS + head) * SPLITS + split;
    if (SPLITS == 1u) {
        y[at * QUADS + quad] = values / max(sum, 1e-30);
        return;
    }
    y[at * (QUADS + 1u) + quad] = values;
    if (quad == 0u) {
        y[at * (QUADS + 1u) + QUADS] = vec4<f32>(largest, sum, 0.0, 0.0);
    }
}
