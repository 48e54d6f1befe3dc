// y[r] = (x[r] - mean(x[r])) / sqrt(var(x[r]) + EPS) · w + b, for any number of rows of any width. The variance is
// that of the differences from the mean, not of the squares: x may be far from zero. One workgroup per row; any
// number of workgroups does.
//
// Bindings:
//   0  x  f32 [ROWS, WIDTH]
//   1  w  f32 [WIDTH]
//   2  b  f32 [WIDTH]
//   3  y  f32 [ROWS, WIDTH]
//!const ROWS: u32
//!const WIDTH: u32
//!const EPS: f32
//!include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn layer_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        var sum = 0.0;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            sum += x[r * WIDTH + i];
        }
        let mean = workgroup_sum(sum, at) / f32(WIDTH);
        var squares = 0.0;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            let v = x[r * WIDTH + i] - mean;
            squares += v * v;
        }
        let variance = workgroup_sum(squares, at) / f32(WIDTH);
        let factor = 1.0 / sqrt(variance + EPS);
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            y[r * WIDTH + i] = (x[r * WIDTH + i] - mean) * factor * w[i] + b[i];
        }
    }
}
