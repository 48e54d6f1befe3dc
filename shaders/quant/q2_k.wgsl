// Q2_K, blocks of 256: plane 0, 64 bytes of quants (32 bytes hold four groups, two bits each, from the lowest);
// plane 1, 16 bytes of scales s (low half) and t (high); plane 2, d and dmin. x = d s q - dmin t, of 16 numbers
// each.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 0.0;
const MINIMA: bool = true;

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let at = PLANE_0 / 4u + 4u * b + 2u * (j / 4u);
    let shift = 2u * (j % 4u);
    let low = fields(weights[at], shift, 0x03030303u);
    let high = fields(weights[at + 1u], shift, 0x03030303u);
    let st = word_at(PLANE_1 + 4u * b + j / 2u) >> (16u * (j % 2u));
    let d = unpack2x16float(word_at(PLANE_2 + b));
    let s = vec2<f32>(f32(st & 15u), f32((st >> 8u) & 15u));
    let t = vec2<f32>(f32((st >> 4u) & 15u), f32((st >> 12u) & 15u));
    return Group(low, high, s * d.x, t * -d.y);
}
