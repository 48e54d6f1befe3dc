// y[i] = 1 everywhere, so that memory is really there before it is read. Any number of workgroups does.
//
// Bindings:
//   0  y  vec4<f32> [any]
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn fill(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < arrayLength(&y); i += groups.x * WORKGROUP) {
        y[i] = vec4<f32>(1.0);
    }
}
