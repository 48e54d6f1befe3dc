// state[slot[r], :, pos[r] mod CELLS] = x[r], quantized; an entry point for q8_0 and one for q4_0. One invocation per
// two blocks of 32 numbers, whose scales share a word.
//
// Bindings:
//   0  x      f32 [ROWS, KV_HEADS, HEAD_DIM]
//   1  pos    i32 [ROWS]; rows without a position (below 0) are not written
//   2  slot   i32 [ROWS]
//   3  state  [slots, KV_HEADS, CELLS, HEAD_DIM]; kv/<type>.wgsl describes its words
// HEAD_DIM is a multiple of 32; SCALES is the word at which the scales begin. Any number of workgroups does.
//!const ROWS: u32
//!const KV_HEADS: u32
//!const HEAD_DIM: u32
//!const CELLS: u32
//!const SCALES: u32
//!const WORKGROUP: u32 = 64

const_assert HEAD_DIM > 0u && HEAD_DIM % 32u == 0u;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> pos: array<i32>;
@group(0) @binding(2) var<storage, read> slot: array<i32>;
@group(0) @binding(3) var<storage, read_write> state: array<u32>;

const BLOCKS: u32 = HEAD_DIM / 32u;
const PAIRS: u32 = (BLOCKS + 1u) / 2u;

fn four(at: u32) -> vec4<f32> {
    return vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
}

fn inverse(d: f32) -> f32 {
    if (d == 0.0) {
        return 0.0;
    }
    return 1.0 / d;
}

// Quantizes 32 numbers of x from `source` on to words from `place` on; returns their scale.
fn quantize_q8_0(source: u32, place: u32) -> f32 {
    var largest = 0.0;
    for (var n = 0u; n < 32u; n++) {
        largest = max(largest, abs(x[source + n]));
    }
    let d = largest / 127.0;
    for (var n = 0u; n < 8u; n++) {
        let scaled = four(source + 4u * n) * inverse(d);
        let whole = trunc(scaled);
        // Halves go away from zero.
        state[place + n] = pack4xI8(vec4<i32>(whole + trunc(2.0 * (scaled - whole))));
    }
    return d;
}

fn quantize_q4_0(source: u32, place: u32) -> f32 {
    var farthest = x[source];
    for (var n = 1u; n < 32u; n++) {
        if (abs(x[source + n]) > abs(farthest)) {
            farthest = x[source + n];
        }
    }
    let d = farthest / -8.0;  // so that it becomes quant 0
    for (var n = 0u; n < 4u; n++) {
        let low = min(four(source + 4u * n) * inverse(d) + 8.5, vec4<f32>(15.0));
        let high = min(four(source + 4u * n + 16u) * inverse(d) + 8.5, vec4<f32>(15.0));
        state[place + n] = pack4xU8(vec4<u32>(low)) | (pack4xU8(vec4<u32>(high)) << 4u);
    }
    return d;
}

// Where head h of a row goes, counted in cells.
fn cell_of(r: u32, h: u32) -> u32 {
    return (u32(slot[r]) * KV_HEADS + h) * CELLS + u32(pos[r]) % CELLS;
}

@compute @workgroup_size(WORKGROUP)
fn kv_write_q8_0(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * KV_HEADS * PAIRS; i += groups.x * WORKGROUP) {
        let head = i / PAIRS;  // of all rows
        if (pos[head / KV_HEADS] >= 0) {
            let cell = cell_of(head / KV_HEADS, head % KV_HEADS);
            var d = vec2<f32>();
            for (var j = 2u * (i % PAIRS); j < min(2u * (i % PAIRS) + 2u, BLOCKS); j++) {
                d[j % 2u] = quantize_q8_0(head * HEAD_DIM + 32u * j, 8u * (cell * BLOCKS + j));
            }
            state[SCALES + cell * PAIRS + i % PAIRS] = pack2x16float(d);
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn kv_write_q4_0(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * KV_HEADS * PAIRS; i += groups.x * WORKGROUP) {
        let head = i / PAIRS;  // of all rows
        if (pos[head / KV_HEADS] >= 0) {
            let cell = cell_of(head / KV_HEADS, head % KV_HEADS);
            var d = vec2<f32>();
            for (var j = 2u * (i % PAIRS); j < min(2u * (i % PAIRS) + 2u, BLOCKS); j++) {
                d[j % 2u] = quantize_q4_0(head * HEAD_DIM + 32u * j, 4u * (cell * BLOCKS + j));
            }
            state[SCALES + cell * PAIRS + i % PAIRS] = pack2x16float(d);
        }
    }
}
