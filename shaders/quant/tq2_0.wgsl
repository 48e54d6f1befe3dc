// TQ2_0, blocks of 256: plane 0, 64 bytes of quants (32 bytes hold four groups, two bits each, from the lowest); plane
// 1, d. x = d (q - 1).
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 1.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let at = PLANE_0 / 4u + 4u * b + 2u * (j / 4u);
    let shift = 2u * (j % 4u);
    let low = fields(weights[at], shift, 0x03030303u);
    let high = fields(weights[at + 1u], shift, 0x03030303u);
    return Group(low, high, vec2<f32>(half_at(PLANE_1, b)), vec2<f32>());
}
