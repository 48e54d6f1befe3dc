// Operators on each number by itself, an entry point each. One invocation per number of y.
//
// Bindings:
//   0  a  f32 [COUNT], or [COUNT / WIDTH, 2 WIDTH] for gated_*: each row a gate and then what it is multiplied with
//   1  y  f32 [COUNT]
//   2  b  f32 [COUNT], or [WIDTH] for add_row; only of add, add_row, mul
// PARAMETER is the factor of scale and the cap of softcap; WIDTH of a row is for add_row and gated_*. Any number of
// workgroups does.
//!const COUNT: u32
//!const PARAMETER: f32 = 1.0
//!const WIDTH: u32 = 1
//!const WORKGROUP: u32 = 64
//!include "lib/math.wgsl"

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn scale(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = a[i] * PARAMETER;
    }
}

@compute @workgroup_size(WORKGROUP)
fn softcap(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = safe_tanh(a[i] * (1.0 / PARAMETER)) * PARAMETER;
    }
}

@compute @workgroup_size(WORKGROUP)
fn silu(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = safe_silu(a[i]);
    }
}

@compute @workgroup_size(WORKGROUP)
fn gelu_tanh(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = safe_gelu_tanh(a[i]);
    }
}

@compute @workgroup_size(WORKGROUP)
fn gelu(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = gelu_erf(a[i]);
    }
}

@compute @workgroup_size(WORKGROUP)
fn add(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = a[i] + b[i];
    }
}

@compute @workgroup_size(WORKGROUP)
fn add_row(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = a[i] + b[i % WIDTH];
    }
}

@compute @workgroup_size(WORKGROUP)
fn mul(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        y[i] = a[i] * b[i];
    }
}

// Where number i of y has its gate.
fn gate_of(i: u32) -> u32 {
    return i / WIDTH * 2u * WIDTH + i % WIDTH;
}

@compute @workgroup_size(WORKGROUP)
fn gated_silu(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        let at = gate_of(i);
        y[i] = safe_silu(a[at]) * a[at + WIDTH];
    }
}

@compute @workgroup_size(WORKGROUP)
fn gated_gelu_tanh(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < COUNT; i += groups.x * WORKGROUP) {
        let at = gate_of(i);
        y[i] = safe_gelu_tanh(a[at]) * a[at + WIDTH];
    }
}
