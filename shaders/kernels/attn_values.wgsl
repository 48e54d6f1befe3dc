// y[r, h] = Σ_c p[r, h, c] · v[slot[r], h KV_HEADS / HEADS, c], over the first SEEN of the CELLS. One invocation per
// four numbers.
//
// Composed with kv/<type>.wgsl. Bindings:
//   0  p      f32 [ROWS, HEADS, SEEN]
//   1  state  v [slots, KV_HEADS, CELLS, HEAD_DIM]
//   2  slot   i32 [ROWS]
//   3  y      f32 [ROWS, HEADS, HEAD_DIM]
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

@group(0) @binding(0) var<storage, read> p: array<f32>;
@group(0) @binding(1) var<storage, read> state: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> slot: array<i32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

const QUADS: u32 = HEAD_DIM / 4u;

@compute @workgroup_size(WORKGROUP)
fn attn_values(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * HEADS * QUADS; i += groups.x * WORKGROUP) {
        let head = i / QUADS;  // of all rows
        let kv_head = u32(slot[head / HEADS]) * KV_HEADS + (head % HEADS) * KV_HEADS / HEADS;
        var sum = vec4<f32>();
        for (var c = 0u; c < SEEN; c++) {
            sum += p[head * SEEN + c] * state_at((kv_head * CELLS + c) * QUADS + i % QUADS);
        }
        y[i] = sum;
    }
}
