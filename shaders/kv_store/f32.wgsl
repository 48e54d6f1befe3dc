// Stores a cell of a KV state of type f32. A kernel that is composed with kv_store/<type>.wgsl defines
//   state: array<u32>                     a storage buffer
//   fn number(i: u32) -> f32              number i of the cell
//   HEAD_DIM, WORKGROUP
// and calls store_cell(cell, at) with all invocations of a workgroup, each with its place `at` in it.

fn store_cell(cell: u32, at: u32) {
    for (var i = at; i < HEAD_DIM; i += WORKGROUP) {
        state[cell * HEAD_DIM + i] = bitcast<u32>(number(i));
    }
}
