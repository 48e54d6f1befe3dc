// Q4_1: plane 0, 16 bytes of quants (number i low, number i + 16 high); plane 1, d and m. x = d q + m.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 0.0;
const MINIMA: bool = true;

fn read_group(g: u32) -> Group {
    let q = weights[PLANE_0 / 4u + g];
    let dm = unpack2x16float(word_at(PLANE_1 + g));
    return Group(fields(q, 0u, 0x0F0F0F0Fu), fields(q, 4u, 0x0F0F0F0Fu), vec2<f32>(dm.x), vec2<f32>(dm.y));
}
