// IQ2_XS, blocks of 256: the grid; plane 0, 64 bytes, of each group four times 16 bits: 9 of an index, below 7 signs;
// plane 1, a byte of each group with s of both halves; plane 2, d. x = d (s + 1/2) / 4 times a number of the grid.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!include "lib/iq2.wgsl"

fn read_group(g: u32) -> Group {
    let at = PLANE_0 + 2u * g;
    let a = word_at(at);
    let b = word_at(at + 1u);
    let indices = vec4<u32>(a, a >> 16u, b, b >> 16u) & vec4<u32>(511u);
    let minus = vec4<u32>(
        eight_signs(a >> 9u), eight_signs(a >> 25u), eight_signs(b >> 9u), eight_signs(b >> 25u),
    );
    let s = word_at(PLANE_1 + g / 4u) >> (8u * (g % 4u));
    return group_of(indices, minus, two_scales(s, half_at(PLANE_2, g / 8u)));
}
