// y[r, h, c] = q[r, h] · k[slot[r], h KV_HEADS / HEADS, c], over the first SEEN of the CELLS. One invocation per
// number.
//
// Composed with kv/<type>.wgsl. Bindings:
//   0  q      f32 [ROWS, HEADS, HEAD_DIM]
//   1  state  k [slots, KV_HEADS, CELLS, HEAD_DIM]
//   2  slot   i32 [ROWS]
//   3  y      f32 [ROWS, HEADS, SEEN]
// HEAD_DIM is a multiple of 4. Any number of workgroups does.
//!const ROWS: u32
//!const HEADS: u32
//!const KV_HEADS: u32
//!const HEAD_DIM: u32
//!const CELLS: u32
//!const SEEN: u32
//!const WORKGROUP: u32 = 64

const_assert HEAD_DIM % 4u == 0u;
const_assert HEADS % KV_HEADS == 0u;
const_assert SEEN <= CELLS;

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> state: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> slot: array<i32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const QUADS: u32 = HEAD_DIM / 4u;

@compute @workgroup_size(WORKGROUP)
fn attn_scores(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * HEADS * SEEN; i += groups.x * WORKGROUP) {
        let head = i / SEEN;  // of all rows
        let kv_head = u32(slot[head / HEADS]) * KV_HEADS + (head % HEADS) * KV_HEADS / HEADS;
        let key = (kv_head * CELLS + i % SEEN) * QUADS;
        var sum = 0.0;
        for (var d = 0u; d < QUADS; d++) {
            sum += dot(q[head * QUADS + d], state_at(key + d));
        }
        y[i] = sum;
    }
}
