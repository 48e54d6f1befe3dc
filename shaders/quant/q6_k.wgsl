// Q6_K, blocks of 256: plane 0, 128 bytes of low four bits (64 bytes hold four groups, the first two in the low
// halves); plane 1, 64 bytes of high two bits (32 bytes hold four groups, from the lowest bits); plane 2, 16 signed
// scales s; plane 3, d. x = d s (q - 32), of 16 numbers each.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!const PLANE_3: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 32.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let at = PLANE_0 / 4u + 8u * b + 4u * (j / 4u) + 2u * (j % 2u);
    let shift = 4u * ((j / 2u) % 2u);
    let tops = PLANE_1 / 4u + 4u * b + 2u * (j / 4u);
    let top_shift = 2u * (j % 4u);
    let four = vec4<u32>(4u);
    let low = fields(weights[at], shift, 0x0F0F0F0Fu) | (fields(weights[tops], top_shift, 0x03030303u) << four);
    let high = fields(weights[at + 1u], shift, 0x0F0F0F0Fu)
        | (fields(weights[tops + 1u], top_shift, 0x03030303u) << four);
    let s = bitcast<i32>(word_at(PLANE_2 + 4u * b + j / 2u) >> (16u * (j % 2u)));
    let d = vec2<f32>(f32(extractBits(s, 0u, 8u)), f32(extractBits(s, 8u, 8u))) * half_at(PLANE_3, b);
    return Group(low, high, d, vec2<f32>());
}
