// MXFP4: plane 0, 16 bytes of quants (number i low, number i + 16 high); plane 1, a byte e. x = 2^(e - 128) LEVELS[q],
// where levels are twice the numbers of E2M1.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/bytes.wgsl"
//!include "lib/levels.wgsl"

const LEVELS = vec4<u32>(0x83828180u, 0x8C888684u, 0x7D7E7F80u, 0x74787A7Cu);
const ZERO: f32 = 128.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let q = weights[PLANE_0 / 4u + g];
    let e = (word_at(PLANE_1 + g / 4u) >> (8u * (g % 4u))) & 255u;
    // A float32's exponent; the two least are subnormal, which a device may take for 0.
    let d = bitcast<f32>(select((e - 1u) << 23u, 0x00200000u << e, e < 2u));
    return Group(levels4(q, 0u), levels4(q, 4u), vec2<f32>(d), vec2<f32>());
}
