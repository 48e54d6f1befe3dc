// Q3_K, blocks of 256: plane 0, 64 bytes of low quants (32 bytes hold four groups, two bits each, from the lowest);
// plane 1, 32 bytes of third bits (group j's are bit j); plane 2, 12 bytes of scales s of six bits; plane 3, d. x =
// d (s - 32) (q - 4), of 16 numbers each.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!const PLANE_3: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 4.0;
const MINIMA: bool = false;

// Scale k of block b: its low four bits are half a byte of the first 8, its high two a quarter of one of the last 4.
fn scale_at(b: u32, k: u32) -> f32 {
    let at = PLANE_2 + 3u * b;
    let low = (word_at(at + (k % 8u) / 4u) >> (8u * (k % 4u) + 4u * (k / 8u))) & 15u;
    let high = (word_at(at + 2u) >> (8u * (k % 4u) + 2u * (k / 4u))) & 3u;
    return f32(low | (high << 4u)) - 32.0;
}

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let at = PLANE_0 / 4u + 4u * b + 2u * (j / 4u);
    let shift = 2u * (j % 4u);
    let thirds = PLANE_1 / 4u + 2u * b;
    let two = vec4<u32>(2u);
    let low = fields(weights[at], shift, 0x03030303u) | (fields(weights[thirds], j, 0x01010101u) << two);
    let high = fields(weights[at + 1u], shift, 0x03030303u) | (fields(weights[thirds + 1u], j, 0x01010101u) << two);
    let d = half_at(PLANE_3, b);
    return Group(low, high, vec2<f32>(scale_at(b, 2u * j), scale_at(b, 2u * j + 1u)) * d, vec2<f32>());
}
