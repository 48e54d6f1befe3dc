// y = scores where the cell holds a position that the row sees, 0 <= cell_pos[slot[r], c] <= pos[r] and, with a
// WINDOW, pos[r] - cell_pos[slot[r], c] < WINDOW; else HIDDEN. One invocation per number.
//
// Bindings:
//   0  scores    f32 [ROWS, HEADS, SEEN]
//   1  cell_pos  i32 [slots, CELLS]
//   2  pos       i32 [ROWS]
//   3  slot      i32 [ROWS]
//   4  y         f32 [ROWS, HEADS, SEEN]
// c goes over the first SEEN of the CELLS. WINDOW 0: there is none. Any number of workgroups does.
//!const ROWS: u32
//!const HEADS: u32
//!const CELLS: u32
//!const SEEN: u32
//!const WORKGROUP: u32 = 64
//!include "lib/hidden.wgsl"
//!include "lib/sees.wgsl"

const_assert SEEN <= CELLS;

@group(0) @binding(0) var<storage, read> scores: array<f32>;
@group(0) @binding(1) var<storage, read> cell_pos: array<i32>;
@group(0) @binding(2) var<storage, read> pos: array<i32>;
@group(0) @binding(3) var<storage, read> slot: array<i32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn mask(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * HEADS * SEEN; i += groups.x * WORKGROUP) {
        let r = i / (HEADS * SEEN);
        y[i] = select(HIDDEN, scores[i], sees(pos[r], cell_pos[u32(slot[r]) * CELLS + i % SEEN]));
    }
}
