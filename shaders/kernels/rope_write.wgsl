// From rows of queries, keys and values side by side: queries and keys after a norm, if they have one, and rope; keys and
// values into the KV state. One workgroup per row and head; any number of workgroups does.
//
// Composed with heads/<plain or normed>.wgsl and twice with kv_store/<type>.wgsl, whose `state`, `store_cell` … are
// renamed to k_state, k_store_cell … and v_state, …. Bindings:
//   0  qkv      f32 [ROWS, HEADS + 2 KV_HEADS, HEAD_DIM]
//   1  k_state  [slots, KV_HEADS, CELLS, HEAD_DIM]
//   2  v_state  the same
//   3  pos      i32 [ROWS]; rows without a position (below 0) write no state
//   4  slot     i32 [ROWS]
//   5  turns    f32 [positions, DIM / 2, 2], as of kernels/rope.wgsl
//   6  q        f32 [ROWS, HEADS, HEAD_DIM]
//   7  norms    of heads/normed.wgsl
//!const ROWS: u32
//!const HEADS: u32
//!const KV_HEADS: u32
//!const HEAD_DIM: u32
//!const DIM: u32
//!const INTERLEAVED: bool
//!const CELLS: u32
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read_write> k_state: array<u32>;
@group(0) @binding(2) var<storage, read_write> v_state: array<u32>;
@group(0) @binding(3) var<storage, read> pos: array<i32>;
@group(0) @binding(4) var<storage, read> slot: array<i32>;
@group(0) @binding(5) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> q: array<f32>;

const ALL_HEADS: u32 = HEADS + 2u * KV_HEADS;
const HALF: u32 = max(DIM / 2u, 1u);  // of heads that are not turned, too

var<workgroup> given: array<f32, HEAD_DIM>;   // the head, after its norm
var<workgroup> turned: array<f32, HEAD_DIM>;  // and after rope

fn number(i: u32) -> f32 {
    return turned[i];
}

// Number i of the head at position p.
fn with_rope(i: u32, p: u32) -> f32 {
    if (i >= DIM) {
        return given[i];
    }
    var pair = i % HALF;
    var second = i >= HALF;
    var distance = HALF;
    if (INTERLEAVED) {
        pair = i / 2u;
        second = i % 2u == 1u;
        distance = 1u;
    }
    let turn = turns[p * HALF + pair];
    if (second) {
        return given[i] * turn.x + given[i - distance] * turn.y;
    }
    return given[i] * turn.x - given[i + distance] * turn.y;
}

@compute @workgroup_size(WORKGROUP)
fn rope_write(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var t = workgroup.x; t < ROWS * ALL_HEADS; t += workgroups.x) {
        let r = t / ALL_HEADS;
        let head = t % ALL_HEADS;
        let is_value = head >= HEADS + KV_HEADS;
        var squares = 0.0;
        for (var i = at; i < HEAD_DIM; i += WORKGROUP) {
            let v = qkv[t * HEAD_DIM + i];
            squares += v * v;
        }
        let factor = head_factor(squares, at);
        for (var i = at; i < HEAD_DIM; i += WORKGROUP) {
            let weight = factor * head_weight(u32(head >= HEADS), i);
            given[i] = qkv[t * HEAD_DIM + i] * select(weight, 1.0, is_value);
        }
        workgroupBarrier();
        let p = pos[r];
        for (var i = at; i < HEAD_DIM; i += WORKGROUP) {
            if (is_value) {
                turned[i] = given[i];
            } else {
                turned[i] = with_rope(i, u32(max(p, 0)));
            }
        }
        workgroupBarrier();
        if (head < HEADS) {
            for (var i = at; i < HEAD_DIM; i += WORKGROUP) {
                q[(r * HEADS + head) * HEAD_DIM + i] = turned[i];
            }
        } else if (p >= 0) {
            let kv_head = u32(slot[r]) * KV_HEADS + (head - HEADS) % KV_HEADS;
            let cell = kv_head * CELLS + u32(p) % CELLS;
            if (is_value) {
                v_store_cell(cell, at);
            } else {
                k_store_cell(cell, at);
            }
        }
        workgroupBarrier();  // before the next head is read
    }
}
