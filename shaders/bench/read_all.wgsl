// Reads all of x: each invocation makes a sum of what it reads, so that nothing can be left out.
//
// Bindings:
//   0  x     vec4<f32> [any]
//   1  sums  f32 [invocations]
//!include "bench/span.wgsl"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn read_all(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let s = span(arrayLength(&x), id.x, groups.x * WORKGROUP);
    var a = vec4<f32>();
    var b = vec4<f32>();
    var c = vec4<f32>();
    var d = vec4<f32>();
    for (var i = s.first; i < s.end; i += 4u * s.step) {
        a += x[i];
        b += x[i + s.step];
        c += x[i + 2u * s.step];
        d += x[i + 3u * s.step];
    }
    sums[id.x] = dot(a + b + c + d, vec4<f32>(1.0));
}
