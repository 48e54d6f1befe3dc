// The IQ1 formats: indices of 8 numbers n, which are -1, 0 or 1. x = d' (8 n ± 1), where d' = d (2 s + 1) / 8. Bytes are
// 9 + 8 n ± 1.
//!include "lib/grid.wgsl"

const ZERO: f32 = 9.0;
const MINIMA: bool = false;

// `high`: three bits of the index, and a fourth one where 1 is taken away.
fn eight(low: u32, high: u32) -> vec2<u32> {
    let places = half_word((low & 255u) | ((high & 7u) << 8u));
    let shift = select(0x02020202u, 0u, (high & 8u) != 0u);
    return vec2<u32>(8u * spread(places & 255u) + shift, 8u * spread(places >> 8u) + shift);
}

// `low`: a byte of each of four indices; `high`: four bits of each.
fn group_of(low: u32, high: u32, d: vec2<f32>) -> Group {
    let a = vec4<u32>(eight(low, high), eight(low >> 8u, high >> 4u));
    let b = vec4<u32>(eight(low >> 16u, high >> 8u), eight(low >> 24u, high >> 12u));
    return Group(a, b, d, vec2<f32>());
}

fn odd(s: u32) -> f32 {
    return f32(2u * (s & 7u) + 1u);
}
