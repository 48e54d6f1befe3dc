// y[r] = residual[r] + rms_norm(x[r]); as kernels/rms_norm.wgsl, with one more binding.
//
// Bindings:
//   0  x         f32 [ROWS, WIDTH]
//   1  w         f32 [WIDTH]
//   2  residual  f32 [ROWS, WIDTH]
//   3  y         f32 [ROWS, WIDTH]
//!include "lib/norm_rows.wgsl"

@group(0) @binding(2) var<storage, read> residual: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn put(i: u32, v: f32) {
    y[i] = residual[i] + v;
}

@compute @workgroup_size(WORKGROUP)
fn norm_add(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    norm_rows(workgroup.x, workgroups.x, at);
}
