// Fused attention (lib/attention.wgsl) for few rows. One workgroup per row, KV head, split of the cells and part of the
// KV head's query heads, HEADS_AT_ONCE in each part, so that keys and values are read once for all of these. Any number
// of workgroups does.
//
// A tile of TILE cells at a time: products by LANES adjacent invocations for four cells, the largest score of each
// head, weights, values by QUADS adjacent invocations. What was summed before is scaled when a larger score comes.
// QUADS and HEADS_AT_ONCE are at most WORKGROUP, which is a multiple of LANES.
//!const HEADS_AT_ONCE: u32
//!const LANES: u32 = 4
//!const WORKGROUP: u32 = 64
//!include "lib/attention.wgsl"
//!include "lib/seen_cells.wgsl"

const PARTS: u32 = (GROUP + HEADS_AT_ONCE - 1u) / HEADS_AT_ONCE;
const STEP: u32 = WORKGROUP / LANES;  // from one of an invocation's four cells to the next
const TILE: u32 = 4u * STEP;
const MAXIMA: u32 = 8u;  // of each head, of every eighth cell of the tile
const STRIPES: u32 = WORKGROUP / QUADS;  // of cells whose values are summed apart

const_assert WORKGROUP % LANES == 0u;
const_assert QUADS <= WORKGROUP && HEADS_AT_ONCE <= WORKGROUP;

var<workgroup> queries: array<vec4<f32>, HEADS_AT_ONCE * QUADS>;
var<workgroup> scores: array<f32, HEADS_AT_ONCE * TILE * LANES>;  // of the lanes, then of all at the first one's place
var<workgroup> weights: array<vec4<f32>, HEADS_AT_ONCE * STEP>;
var<workgroup> maxima: array<f32, HEADS_AT_ONCE * MAXIMA>;
var<workgroup> largest: array<f32, HEADS_AT_ONCE>;  // of all tiles so far
var<workgroup> factors: array<f32, HEADS_AT_ONCE>;  // for what was summed before this tile
var<workgroup> stripe_values: array<vec4<f32>, WORKGROUP>;
var<workgroup> stripe_sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn attention_decode(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    let lane = at % LANES;
    let quad = at % QUADS;
    let stripe = at / QUADS;
    for (var work = workgroup.x; work < ROWS * KV_HEADS * PARTS * SPLITS; work += workgroups.x) {
        let split = work % SPLITS;
        let part = work / SPLITS % PARTS;
        let kv_head = work / (SPLITS * PARTS) % KV_HEADS;
        let r = work / (SPLITS * PARTS * KV_HEADS);
        let first_head = kv_head * GROUP + part * HEADS_AT_ONCE;
        let heads = min(HEADS_AT_ONCE, GROUP - part * HEADS_AT_ONCE);
        let at_pos = pos[r];
        let row_slot = u32(slot[r]);
        let cell_0 = (row_slot * KV_HEADS + kv_head) * CELLS;

        for (var i = at; i < HEADS_AT_ONCE * QUADS; i += WORKGROUP) {
            let head = first_head + min(i / QUADS, heads - 1u);
            queries[i] = q[(r * HEADS + head) * QUADS + i % QUADS];
        }
        if (at < HEADS_AT_ONCE) {
            largest[at] = HIDDEN;
        }
        var sums: array<f32, HEADS_AT_ONCE>;
        var values: array<vec4<f32>, HEADS_AT_ONCE>;
        for (var h = 0u; h < HEADS_AT_ONCE; h++) {
            sums[h] = 0.0;
            values[h] = vec4<f32>();
        }

        let split_end = min((split + 1u) * SPLIT, SEEN);
        let seen = seen_cells(row_slot, split * SPLIT, split_end, at_pos, at_pos, at);
        for (var tile = seen.x; tile < seen.y; tile += TILE) {
            let near = tile + at / LANES;
            let cells = vec4<u32>(near, near + STEP, near + 2u * STEP, near + 3u * STEP);
            let keys = (cell_0 + min(cells, vec4<u32>(seen.y - 1u))) * QUADS;
            var products: array<vec4<f32>, HEADS_AT_ONCE>;
            for (var h = 0u; h < HEADS_AT_ONCE; h++) {
                products[h] = vec4<f32>();
            }
            for (var d = lane; d < QUADS; d += LANES) {
                let key_0 = k_at(keys.x + d);
                let key_1 = k_at(keys.y + d);
                let key_2 = k_at(keys.z + d);
                let key_3 = k_at(keys.w + d);
                for (var h = 0u; h < HEADS_AT_ONCE; h++) {
                    let a = queries[h * QUADS + d];
                    products[h] += vec4<f32>(dot(a, key_0), dot(a, key_1), dot(a, key_2), dot(a, key_3));
                }
            }
            for (var i = 0u; i < 4u; i++) {
                let seen_one = cells[i] < seen.y && sees(at_pos, cell_pos[row_slot * CELLS + min(cells[i], SEEN - 1u)]);
                for (var h = 0u; h < HEADS_AT_ONCE; h++) {
                    let place = (h * TILE + cells[i] - tile) * LANES + lane;
                    scores[place] = select(HIDDEN, products[h][i], seen_one);
                }
            }
            workgroupBarrier();

            for (var i = at; i < HEADS_AT_ONCE * MAXIMA; i += WORKGROUP) {
                var most = HIDDEN;
                for (var c = i % MAXIMA; c < TILE; c += MAXIMA) {
                    let place = (i / MAXIMA * TILE + c) * LANES;
                    if (scores[place] != HIDDEN) {
                        var product = 0.0;
                        for (var l = 0u; l < LANES; l++) {
                            product += scores[place + l];
                        }
                        scores[place] = score_of(product);
                        most = max(most, scores[place]);
                    }
                }
                maxima[i] = most;
            }
            workgroupBarrier();
            if (at < HEADS_AT_ONCE) {
                var most = largest[at];
                for (var i = 0u; i < MAXIMA; i++) {
                    most = max(most, maxima[at * MAXIMA + i]);
                }
                factors[at] = exp(largest[at] - most);
                largest[at] = most;
            }
            workgroupBarrier();
            for (var i = at; i < HEADS_AT_ONCE * STEP; i += WORKGROUP) {
                let four = vec4<f32>(
                    scores[4u * i * LANES],
                    scores[(4u * i + 1u) * LANES],
                    scores[(4u * i + 2u) * LANES],
                    scores[(4u * i + 3u) * LANES],
                );
                weights[i] = weights_of(four, largest[i / STEP]);
            }
            workgroupBarrier();

            for (var h = 0u; h < HEADS_AT_ONCE; h++) {
                sums[h] *= factors[h];
                values[h] *= factors[h];
            }
            for (var i = select(STEP, stripe, stripe < STRIPES); i < STEP && tile + 4u * i < seen.y; i += STRIPES) {
                let four = (cell_0 + min(tile + 4u * i + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(seen.y - 1u))) * QUADS;
                let value_0 = v_at(four.x + quad);
                let value_1 = v_at(four.y + quad);
                let value_2 = v_at(four.z + quad);
                let value_3 = v_at(four.w + quad);
                for (var h = 0u; h < HEADS_AT_ONCE; h++) {
                    let w = weights[h * STEP + i];
                    sums[h] += w.x + w.y + w.z + w.w;
                    values[h] += w.x * value_0 + w.y * value_1 + w.z * value_2 + w.w * value_3;
                }
            }
            workgroupBarrier();  // before the next tile writes
        }

        for (var h = 0u; h < HEADS_AT_ONCE; h++) {
            stripe_values[at] = values[h];
            stripe_sums[at] = sums[h];
            workgroupBarrier();
            if (at < QUADS && h < heads) {
                var sum = 0.0;
                var value = vec4<f32>();
                for (var i = at; i < STRIPES * QUADS; i += QUADS) {
                    sum += stripe_sums[i];
                    value += stripe_values[i];
                }
                put_result(r, first_head + h, split, at, largest[h], sum, value);
            }
            workgroupBarrier();
        }
    }
}
