// IQ4_NL: plane 0, 16 bytes of quants (number i low, number i + 16 high); plane 1, d. x = d LEVELS[q].
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/bytes.wgsl"
//!include "lib/iq4_levels.wgsl"

const ZERO: f32 = 128.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let q = weights[PLANE_0 / 4u + g];
    return Group(levels4(q, 0u), levels4(q, 4u), vec2<f32>(half_at(PLANE_1, g)), vec2<f32>());
}
