// y[r] = x[r] / sqrt(mean(x[r]²) + EPS) · (w + OFFSET), for any number of rows (a norm of heads has one per row and
// head) of any width. One workgroup per row; any number of workgroups does.
//
// Bindings:
//   0  x  f32 [ROWS, WIDTH]
//   1  w  f32 [WIDTH]
//   2  y  f32 [ROWS, WIDTH]
//!const ROWS: u32
//!const WIDTH: u32
//!const EPS: f32
//!const OFFSET: f32 = 0.0
//!include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn rms_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        var sum = 0.0;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            let v = x[r * WIDTH + i];
            sum += v * v;
        }
        let mean_square = workgroup_sum(sum, at) / f32(WIDTH);
        let factor = 1.0 / sqrt(mean_square + EPS);
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            y[r * WIDTH + i] = x[r * WIDTH + i] * factor * (w[i] + OFFSET);
        }
    }
}
