// Q5_0: plane 0, 16 bytes of low quants (number i low, number i + 16 high); plane 1, a word of fifth bits (number
// i's is bit i); plane 2, d. x = d (q - 16).
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!include "lib/bytes.wgsl"
//!include "lib/fifth_bits.wgsl"

const ZERO: f32 = 16.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let q = weights[PLANE_0 / 4u + g];
    let h = word_at(PLANE_1 + g);
    let d = half_at(PLANE_2, g);
    let low = fields(q, 0u, 0x0F0F0F0Fu) | fifth_bits(h, 0u);
    let high = fields(q, 4u, 0x0F0F0F0Fu) | fifth_bits(h, 16u);
    return Group(low, high, vec2<f32>(d), vec2<f32>());
}
