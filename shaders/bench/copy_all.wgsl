// y = x.
//
// Bindings:
//   0  x  vec4<f32> [any]
//   1  y  vec4<f32>, as many
//!include "bench/span.wgsl"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn copy_all(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let s = span(arrayLength(&x), id.x, groups.x * WORKGROUP);
    for (var i = s.first; i < s.end; i += 4u * s.step) {
        y[i] = x[i];
        y[i + s.step] = x[i + s.step];
        y[i + 2u * s.step] = x[i + 2u * s.step];
        y[i + 3u * s.step] = x[i + 3u * s.step];
    }
}
