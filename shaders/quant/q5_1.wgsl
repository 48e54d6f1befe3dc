// Q5_1: plane 0, 16 bytes of low quants (number i low, number i + 16 high); plane 1, a word of fifth bits (number
// i's is bit i); plane 2, d and m. x = d q + m.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!include "lib/bytes.wgsl"
//!include "lib/fifth_bits.wgsl"

const ZERO: f32 = 0.0;
const MINIMA: bool = true;

fn read_group(g: u32) -> Group {
    let q = weights[PLANE_0 / 4u + g];
    let h = word_at(PLANE_1 + g);
    let dm = unpack2x16float(word_at(PLANE_2 + g));
    let low = fields(q, 0u, 0x0F0F0F0Fu) | fifth_bits(h, 0u);
    let high = fields(q, 4u, 0x0F0F0F0Fu) | fifth_bits(h, 16u);
    return Group(low, high, vec2<f32>(dm.x), vec2<f32>(dm.y));
}
