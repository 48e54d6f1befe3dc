// Fused attention (lib/attention.wgsl) for many rows. One workgroup per KV head, split of the cells and tile of QUERIES
// query vectors: one of each head of the KV head's group and row, row after row. Any number of workgroups does.
//
// A tile meets TILE cells at a time, CHUNK quads of both in workgroup memory. Rows of a tile that follow each other in
// one slot go together; where slots alternate, the tile goes through the cells of each such run. What was summed before
// is scaled when a larger score comes. BLOCK, 1, 2, 4 or 8: an invocation makes BLOCK × 4 scores, and keeps BLOCK × 4
// numbers for every 32 of HEAD_DIM.
//!const BLOCK: u32 = 4
//!include "lib/attention.wgsl"
//!include "lib/seen_cells.wgsl"

const WORKGROUP: u32 = 64u;
const QUERIES: u32 = 8u * BLOCK;
const TILE: u32 = 32u;
const CHUNK: u32 = 8u;
const CHUNKS: u32 = (QUADS + CHUNK - 1u) / CHUNK;
const TILES: u32 = (ROWS * GROUP + QUERIES - 1u) / QUERIES;
const LANES: u32 = WORKGROUP / QUERIES;  // invocations that make the weights of a query vector
// Columns of arrays are one longer than what they hold, so that they begin in different banks.
const Q_PITCH: u32 = QUERIES + 1u;
const PITCH: u32 = TILE + 1u;
const FOURS: u32 = TILE / 4u + 1u;

var<workgroup> staged_q: array<vec4<f32>, CHUNK * Q_PITCH>;
var<workgroup> staged: array<vec4<f32>, CHUNK * PITCH>;  // keys or values
var<workgroup> weights: array<vec4<f32>, QUERIES * FOURS>;  // first, scores; of four cells each
var<workgroup> factors: array<f32, QUERIES>;  // for what was summed before this tile
var<workgroup> maxima: array<f32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn attention_prefill(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    // For products: query vectors near, near + 8, …; four cells from 4 low on, or quad `low` of each chunk.
    let near = at / 8u;
    let low = at % 8u;
    // For weights: query vector `mine`, some groups of four cells.
    let mine = at / LANES;
    let lane = at % LANES;
    for (var work = workgroup.x; work < TILES * KV_HEADS * SPLITS; work += workgroups.x) {
        let split = work % SPLITS;
        let kv_head = work / SPLITS % KV_HEADS;
        let first = work / (SPLITS * KV_HEADS) * QUERIES;  // query vector: row · GROUP + head of the group
        let rows_end = (min(first + QUERIES, ROWS * GROUP) + GROUP - 1u) / GROUP;
        let split_end = min((split + 1u) * SPLIT, SEEN);

        var largest = HIDDEN;  // of query vector `mine`
        var sum = 0.0;  // of this invocation's weights
        var values: array<vec4<f32>, CHUNKS * BLOCK>;
        for (var i = 0u; i < CHUNKS * BLOCK; i++) {
            values[i] = vec4<f32>();
        }

        var run_end = 0u;
        for (var run = first / GROUP; run < rows_end; run = run_end) {
            let run_slot = slot[run];
            var lowest = 0x7FFFFFFF;  // but for padding
            var highest = -1;
            for (run_end = run; run_end < rows_end && slot[run_end] == run_slot; run_end++) {
                lowest = select(lowest, min(lowest, pos[run_end]), pos[run_end] >= 0);
                highest = max(highest, pos[run_end]);
            }
            let cell_0 = (u32(run_slot) * KV_HEADS + kv_head) * CELLS;
            let seen = seen_cells(u32(run_slot), split * SPLIT, split_end, lowest, highest, at);
            for (var tile = seen.x; tile < seen.y; tile += TILE) {
                var products: array<vec4<f32>, BLOCK>;
                for (var i = 0u; i < BLOCK; i++) {
                    products[i] = vec4<f32>();
                }
                for (var chunk = 0u; chunk < QUADS; chunk += CHUNK) {
                    for (var i = at; i < QUERIES * CHUNK; i += WORKGROUP) {
                        let query = min(first + i / CHUNK, ROWS * GROUP - 1u);
                        let head = query / GROUP * HEADS + kv_head * GROUP + query % GROUP;
                        let quad = chunk + i % CHUNK;
                        var numbers = vec4<f32>();
                        if (quad < QUADS) {
                            numbers = q[head * QUADS + quad];
                        }
                        staged_q[i % CHUNK * Q_PITCH + i / CHUNK] = numbers;
                    }
                    for (var i = at; i < TILE * CHUNK; i += WORKGROUP) {
                        let cell = tile + i / CHUNK;
                        let quad = chunk + i % CHUNK;
                        var numbers = vec4<f32>();
                        if (quad < QUADS && cell < seen.y) {
                            numbers = k_at((cell_0 + cell) * QUADS + quad);
                        }
                        // Every fourth cell after the other, so that invocations read what is adjacent.
                        staged[i % CHUNK * PITCH + i / CHUNK % 4u * (TILE / 4u) + i / CHUNK / 4u] = numbers;
                    }
                    workgroupBarrier();
                    for (var quad = 0u; quad < CHUNK; quad++) {
                        let key = quad * PITCH + low;
                        let key_0 = staged[key];
                        let key_1 = staged[key + 8u];
                        let key_2 = staged[key + 16u];
                        let key_3 = staged[key + 24u];
                        for (var i = 0u; i < BLOCK; i++) {
                            let a = staged_q[quad * Q_PITCH + near + 8u * i];
                            products[i] += vec4<f32>(dot(a, key_0), dot(a, key_1), dot(a, key_2), dot(a, key_3));
                        }
                    }
                    workgroupBarrier();
                }

                var held = vec4<i32>(-1);
                for (var j = 0u; j < 4u; j++) {
                    let cell = tile + 4u * low + j;
                    if (cell < seen.y) {
                        held[j] = cell_pos[u32(run_slot) * CELLS + cell];
                    }
                }
                for (var i = 0u; i < BLOCK; i++) {
                    let row = min((first + near + 8u * i) / GROUP, ROWS - 1u);
                    let row_pos = select(-1, pos[row], row >= run && row < run_end);
                    var four = vec4<f32>(HIDDEN);
                    for (var j = 0u; j < 4u; j++) {
                        if (sees(row_pos, held[j])) {
                            four[j] = score_of(products[i][j]);
                        }
                    }
                    weights[(near + 8u * i) * FOURS + low] = four;
                }
                workgroupBarrier();

                var most = vec4<f32>(HIDDEN);
                for (var i = lane; i < TILE / 4u; i += LANES) {
                    most = max(most, weights[mine * FOURS + i]);
                }
                maxima[at] = max(max(most.x, most.y), max(most.z, most.w));
                workgroupBarrier();
                let before = largest;
                for (var i = 0u; i < LANES; i++) {
                    largest = max(largest, maxima[mine * LANES + i]);
                }
                let factor = exp(before - largest);
                sum *= factor;
                for (var i = lane; i < TILE / 4u; i += LANES) {
                    let four = weights_of(weights[mine * FOURS + i], largest);
                    weights[mine * FOURS + i] = four;
                    sum += four.x + four.y + four.z + four.w;
                }
                if (lane == 0u) {
                    factors[mine] = factor;
                }
                for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                    for (var i = at; i < TILE * CHUNK; i += WORKGROUP) {
                        let cell = tile + i / CHUNK;
                        let quad = chunk * CHUNK + i % CHUNK;
                        var numbers = vec4<f32>();
                        if (quad < QUADS && cell < seen.y) {
                            numbers = v_at((cell_0 + cell) * QUADS + quad);
                        }
                        staged[i % CHUNK * PITCH + i / CHUNK] = numbers;
                    }
                    workgroupBarrier();
                    for (var i = 0u; i < BLOCK; i++) {
                        values[chunk * BLOCK + i] *= factors[near + 8u * i];
                    }
                    for (var four = 0u; four < TILE / 4u; four++) {
                        let value = low * PITCH + 4u * four;
                        let value_0 = staged[value];
                        let value_1 = staged[value + 1u];
                        let value_2 = staged[value + 2u];
                        let value_3 = staged[value + 3u];
                        for (var i = 0u; i < BLOCK; i++) {
                            let w = weights[(near + 8u * i) * FOURS + four];
                            values[chunk * BLOCK + i] +=
                                w.x * value_0 + w.y * value_1 + w.z * value_2 + w.w * value_3;
                        }
                    }
                    workgroupBarrier();
                }
            }
        }

        sums[at] = sum;
        maxima[at] = largest;
        workgroupBarrier();
        for (var i = 0u; i < BLOCK; i++) {
            let place = near + 8u * i;
            let query = first + place;
            var total = 0.0;
            for (var l = 0u; l < LANES; l++) {
                total += sums[place * LANES + l];
            }
            for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                let quad = chunk * CHUNK + low;
                if (quad < QUADS && query < ROWS * GROUP) {
                    let head = kv_head * GROUP + query % GROUP;
                    let four = values[chunk * BLOCK + i];
                    put_result(query / GROUP, head, split, quad, maxima[place * LANES], total, four);
                }
            }
        }
        workgroupBarrier();  // before the next tile writes
    }
}
