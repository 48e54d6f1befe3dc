// state[slot[r], :, pos[r] mod CELLS] = x[r]. One workgroup per row and head; any number of workgroups does.
//
// Composed with kv_store/<type>.wgsl. Bindings:
//   0  x      f32 [ROWS, KV_HEADS, HEAD_DIM]
//   1  pos    i32 [ROWS]; rows without a position (below 0) are not written
//   2  slot   i32 [ROWS]
//   3  state  u32 words of [slots, KV_HEADS, CELLS, HEAD_DIM]; kv/<type>.wgsl describes them
//!const ROWS: u32
//!const KV_HEADS: u32
//!const HEAD_DIM: u32
//!const CELLS: u32
//!const WORKGROUP: u32 = 32

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> pos: array<i32>;
@group(0) @binding(2) var<storage, read> slot: array<i32>;
@group(0) @binding(3) var<storage, read_write> state: array<u32>;

var<private> first: u32;  // number of x of the head that is stored

fn number(i: u32) -> f32 {
    return x[first + i];
}

@compute @workgroup_size(WORKGROUP)
fn kv_write(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var i = workgroup.x; i < ROWS * KV_HEADS; i += workgroups.x) {
        let r = i / KV_HEADS;
        if (pos[r] >= 0) {
            first = i * HEAD_DIM;
            store_cell((u32(slot[r]) * KV_HEADS + i % KV_HEADS) * CELLS + u32(pos[r]) % CELLS, at);
        }
    }
}
