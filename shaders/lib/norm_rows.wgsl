// x[r] / sqrt(mean(x[r]²) + EPS) · (w + OFFSET), for any number of rows of any width: a kernel defines put(i, v), which
// takes number i of all rows, and calls norm_rows in every workgroup.
//!const ROWS: u32
//!const WIDTH: u32
//!const EPS: f32
//!const OFFSET: f32 = 0.0
//!include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;

// One workgroup per row.
fn norm_rows(first: u32, workgroups: u32, at: u32) {
    for (var r = first; r < ROWS; r += workgroups) {
        var sum = 0.0;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            let v = x[r * WIDTH + i];
            sum += v * v;
        }
        let mean_square = workgroup_sum(sum, at) / f32(WIDTH);
        let factor = 1.0 / sqrt(mean_square + EPS);
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            put(r * WIDTH + i, x[r * WIDTH + i] * factor * (w[i] + OFFSET));
        }
    }
}
