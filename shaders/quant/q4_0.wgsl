// Q4_0: plane 0, 16 bytes of quants (number i low, number i + 16 high); plane 1, d. x = d (q - 8).
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 8.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let q = weights[PLANE_0 / 4u + g];
    let d = half_at(PLANE_1, g);
    return Group(fields(q, 0u, 0x0F0F0F0Fu), fields(q, 4u, 0x0F0F0F0Fu), vec2<f32>(d), vec2<f32>());
}
