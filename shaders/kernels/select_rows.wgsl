// y[i] = x[out_rows[i]]. One invocation per number.
//
// Bindings:
//   0  x         f32 [rows, WIDTH]
//   1  out_rows  i32 [OUT_ROWS]
//   2  y         f32 [OUT_ROWS, WIDTH]
// Any number of workgroups does.
//!const OUT_ROWS: u32
//!const WIDTH: u32
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> out_rows: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn select_rows(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < OUT_ROWS * WIDTH; i += groups.x * WORKGROUP) {
        y[i] = x[u32(out_rows[i / WIDTH]) * WIDTH + i % WIDTH];
    }
}
