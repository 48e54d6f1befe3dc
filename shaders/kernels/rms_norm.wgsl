// y[r] = x[r] / sqrt(mean(x[r]²) + EPS) · (w + OFFSET), for any number of rows (a norm of heads has one per row and
// head) of any width. One workgroup per row; any number of workgroups does.
//
// Bindings:
//   0  x  f32 [ROWS, WIDTH]
//   1  w  f32 [WIDTH]
//   2  y  f32 [ROWS, WIDTH]
//!include "lib/norm_rows.wgsl"

@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn put(i: u32, v: f32) {
    y[i] = v;
}

@compute @workgroup_size(WORKGROUP)
fn rms_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    norm_rows(workgroup.x, workgroups.x, at);
}
