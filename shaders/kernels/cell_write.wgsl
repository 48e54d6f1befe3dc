// cell_pos[slot[r], pos[r] mod CELLS] = pos[r]. One invocation per row.
//
// Bindings:
//   0  pos       i32 [ROWS]; rows without a position (below 0) are not written
//   1  slot      i32 [ROWS]
//   2  cell_pos  i32 [slots, CELLS]
// Any number of workgroups does.
//!const ROWS: u32
//!const CELLS: u32
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> pos: array<i32>;
@group(0) @binding(1) var<storage, read> slot: array<i32>;
@group(0) @binding(2) var<storage, read_write> cell_pos: array<i32>;

@compute @workgroup_size(WORKGROUP)
fn cell_write(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var r = id.x; r < ROWS; r += groups.x * WORKGROUP) {
        if (pos[r] >= 0) {
            cell_pos[u32(slot[r]) * CELLS + u32(pos[r]) % CELLS] = pos[r];
        }
    }
}
