// y[r] = a[r] / (1 + exp(-x[r] · w)): rows that one number each, made of another row, lets through. One workgroup per
// row; any number of workgroups does.
//
// Bindings:
//   0  a  f32 [ROWS, WIDTH]
//   1  x  f32 [ROWS, INPUTS]
//   2  w  f32 [INPUTS]
//   3  y  f32 [ROWS, WIDTH]
//!const ROWS: u32
//!const WIDTH: u32
//!const INPUTS: u32
//!include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn gate_rows(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        var sum = 0.0;
        for (var i = at; i < INPUTS; i += WORKGROUP) {
            sum += x[r * INPUTS + i] * w[i];
        }
        sum = workgroup_sum(sum, at);
        let gate = 1.0 / (1.0 + exp(min(-sum, 80.0)));  // larger exponentials are infinite
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            y[r * WIDTH + i] = a[r * WIDTH + i] * gate;
        }
    }
}
