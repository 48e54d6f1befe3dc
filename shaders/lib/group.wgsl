// Packed weights in groups of 32 numbers. A kernel that is composed with quant/<format>.wgsl defines
//
//   weights: array<vec4<u32>>             the packed matrix, a storage buffer
//   fn input(i: u32) -> vec4<f32>         activations 4i..4i+3
//
// and gets, for every format (row o of a matrix that is K wide begins at group o K / 32):
//
//   fn dequantize_group(g: u32)           fills `group` with numbers 32g..32g+31
//   fn dot_group(g: u32, x: u32) -> f32   their dot product with activations 4x..4x+31
//
// PLANE_i says at which u32 word of `weights`, a multiple of 4, plane i of the format begins.

var<private> group: array<f32, 32>;

// Puts v to numbers 4i..4i+3 of the group.
fn put(i: u32, v: vec4<f32>) {
    group[4u * i] = v.x;
    group[4u * i + 1u] = v.y;
    group[4u * i + 2u] = v.z;
    group[4u * i + 3u] = v.w;
}

fn word_at(i: u32) -> u32 {
    return weights[i / 4u][i % 4u];
}

// Float16 number i of the plane that begins at word `plane`.
fn half_at(plane: u32, i: u32) -> f32 {
    return unpack2x16float(word_at(plane + i / 2u) >> (16u * (i % 2u))).x;
}
