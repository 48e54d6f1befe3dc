// y[r] = Σ_k weights[r, k] · x[r, k], and with weighted_add residual[r] before that. One invocation per number of y;
// any number of workgroups does.
//
// Bindings:
//   0  x         f32 [ROWS, COUNT, WIDTH]
//   1  weights   f32 [ROWS, COUNT]
//   2  y         f32 [ROWS, WIDTH]
//   3  residual  f32 [ROWS, WIDTH], of weighted_add
//!const ROWS: u32
//!const COUNT: u32
//!const WIDTH: u32
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> residual: array<f32>;

fn sum_of(i: u32) -> f32 {
    let r = i / WIDTH;
    let column = i % WIDTH;
    var sum = 0.0;
    for (var k = r * COUNT; k < (r + 1u) * COUNT; k++) {
        sum += weights[k] * x[k * WIDTH + column];
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn weighted_sum(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * WIDTH; i += groups.x * WORKGROUP) {
        y[i] = sum_of(i);
    }
}

@compute @workgroup_size(WORKGROUP)
fn weighted_add(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * WIDTH; i += groups.x * WORKGROUP) {
        y[i] = residual[i] + sum_of(i);
    }
}
