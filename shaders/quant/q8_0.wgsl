// Q8_0: plane 0, 32 signed quants; plane 1, d. x = d q.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 128.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let at = PLANE_0 / 4u + 2u * g;
    let flip = vec4<u32>(0x80808080u);  // q + 128, as bytes without sign
    return Group(weights[at] ^ flip, weights[at + 1u] ^ flip, vec2<f32>(half_at(PLANE_1, g)), vec2<f32>());
}
