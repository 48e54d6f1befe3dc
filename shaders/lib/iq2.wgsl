// The IQ2 formats: indices of 8 numbers, whose magnitudes are 8, 25 and 43.
//!include "lib/signed_grid.wgsl"

fn magnitudes(places: u32) -> u32 {
    let p = spread(places & 255u);
    return 0x08080808u + 17u * p + ((p >> 1u) & 0x01010101u);
}

fn eight(index: u32, minus: u32) -> vec2<u32> {
    let places = half_word(index);
    return vec2<u32>(signed(magnitudes(places), minus), signed(magnitudes(places >> 8u), minus >> 4u));
}

fn group_of(indices: vec4<u32>, minus: vec4<u32>, d: vec2<f32>) -> Group {
    let low = vec4<u32>(eight(indices.x, minus.x), eight(indices.y, minus.y));
    let high = vec4<u32>(eight(indices.z, minus.z), eight(indices.w, minus.w));
    return Group(low, high, d, vec2<f32>());
}

// d' of the two halves of a group, from the byte that holds s of both: d (s + 1/2) / 4.
fn two_scales(s: u32, d: f32) -> vec2<f32> {
    return (vec2<f32>(f32(s & 15u), f32((s >> 4u) & 15u)) + 0.5) * (0.25 * d);
}
