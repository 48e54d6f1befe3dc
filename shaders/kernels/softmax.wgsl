// y[r] = exp(x[r] - max x[r]) / Σ exp(x[r] - max x[r]), for any number of rows (one per row of the step and head)
// of any width. One workgroup per row; any number of workgroups does.
//
// Bindings:
//   0  x  f32 [ROWS, WIDTH]
//   1  y  f32 [ROWS, WIDTH]
//!const ROWS: u32
//!const WIDTH: u32
//!include "lib/hidden.wgsl"
//!include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn softmax(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        var largest = HIDDEN;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            largest = max(largest, x[r * WIDTH + i]);
        }
        largest = workgroup_max(largest, at);
        var sum = 0.0;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            let e = exp(x[r * WIDTH + i] - largest);
            y[r * WIDTH + i] = e;
            sum += e;
        }
        sum = workgroup_sum(sum, at);
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            y[r * WIDTH + i] /= sum;
        }
    }
}
