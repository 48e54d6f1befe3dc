// Packed weights in groups of 32 numbers. A kernel that is composed with quant/<format>.wgsl defines
//
//   weights: array<vec4<u32>>             the packed matrix, a storage buffer
//   fn input(i: u32) -> vec4<f32>         activations 4i..4i+3
//
// and gets, for every format (row o of a matrix that is K wide begins at group o K / 32):
//
//   struct Group                               numbers 32g..32g+31 as they lie in registers
//   fn read_group(g: u32) -> Group
//   fn dequantized(v: Group) -> Quads
//   fn dot_read(v: Group, x: Quads) -> f32     their dot product with 32 activations
//
// and what stands below. PLANE_i says at which u32 word of `weights`, a multiple of 4, plane i of the format begins.

// 32 numbers. Not an array, which many compilers would put to memory.
struct Quads {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
    f: vec4<f32>,
    g: vec4<f32>,
    h: vec4<f32>,
}

// Activations 4x..4x+31.
fn read_inputs(x: u32) -> Quads {
    return Quads(
        input(x), input(x + 1u), input(x + 2u), input(x + 3u),
        input(x + 4u), input(x + 5u), input(x + 6u), input(x + 7u),
    );
}

fn dot_quads(w: Quads, x: Quads) -> f32 {
    return dot(w.a, x.a) + dot(w.b, x.b) + dot(w.c, x.c) + dot(w.d, x.d)
        + dot(w.e, x.e) + dot(w.f, x.f) + dot(w.g, x.g) + dot(w.h, x.h);
}

// The dot product of numbers 32g..32g+31 with activations 4x..4x+31.
fn dot_group(g: u32, x: u32) -> f32 {
    return dot_read(read_group(g), read_inputs(x));
}

// One after the other, for those who look at them by number.
var<private> group: array<f32, 32>;

fn put(i: u32, v: vec4<f32>) {
    group[4u * i] = v.x;
    group[4u * i + 1u] = v.y;
    group[4u * i + 2u] = v.z;
    group[4u * i + 3u] = v.w;
}

// Fills `group` with numbers 32g..32g+31.
fn dequantize_group(g: u32) {
    let v = dequantized(read_group(g));
    put(0u, v.a);
    put(1u, v.b);
    put(2u, v.c);
    put(3u, v.d);
    put(4u, v.e);
    put(5u, v.f);
    put(6u, v.g);
    put(7u, v.h);
}

fn word_at(i: u32) -> u32 {
    return weights[i / 4u][i % 4u];
}

// Float16 number i of the plane that begins at word `plane`.
fn half_at(plane: u32, i: u32) -> f32 {
    return unpack2x16float(word_at(plane + i / 2u) >> (16u * (i % 2u))).x;
}
