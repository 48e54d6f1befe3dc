// Multiplies and adds in registers alone: eight chains of vec4, 512 operations a round for each invocation.
//
// Bindings:
//   0  x  vec4<f32> [10]: the factor, the summand, where the chains begin
//   1  y  vec4<f32> [any]: takes a result, so that nothing can be left out
//!const ROUNDS: u32
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn multiply_add(@builtin(global_invocation_id) id: vec3<u32>) {
    let m = x[0];
    let s = x[1];
    var a = x[2];
    var b = x[3];
    var c = x[4];
    var d = x[5];
    var e = x[6];
    var f = x[7];
    var g = x[8];
    var h = x[9];
    for (var i = 0u; i < ROUNDS; i++) {
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
        a = a * m + s; b = b * m + s; c = c * m + s; d = d * m + s;
        e = e * m + s; f = f * m + s; g = g * m + s; h = h * m + s;
    }
    y[id.x % arrayLength(&y)] = a + b + c + d + e + f + g + h;
}
