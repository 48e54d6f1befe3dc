// y[r] = (x[r] - mean(x[r])) / sqrt(var(x[r]) + EPS) · w + b, for any number of rows of any width; the entry point
// layer_norm_plain has no b. The variance is that of the differences from the mean, not of the squares: x may be far
// from zero. One workgroup per row; any number of workgroups does.
//
// Bindings:
//   0  x  f32 [ROWS, WIDTH]
//   1  w  f32 [HEADS, WIDTH]; rows take turns
//   2  y  f32 [ROWS, WIDTH]
//   3  b  f32 [WIDTH]; only of layer_norm
//!const ROWS: u32
//!const WIDTH: u32
//!const EPS: f32
//!const HEADS: u32 = 1
//!include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;

// The mean of row r, and what its differences from that are multiplied with. All invocations together.
fn mean_and_factor(r: u32, at: u32) -> vec2<f32> {
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
    return vec2<f32>(mean, 1.0 / sqrt(variance + EPS));
}

@compute @workgroup_size(WORKGROUP)
fn layer_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        let row = mean_and_factor(r, at);
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            y[r * WIDTH + i] = (x[r * WIDTH + i] - row.x) * row.y * w[i] + b[i];
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn layer_norm_plain(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        let row = mean_and_factor(r, at);
        let first = r % HEADS * WIDTH;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            y[r * WIDTH + i] = (x[r * WIDTH + i] - row.x) * row.y * w[first + i];
        }
    }
}
