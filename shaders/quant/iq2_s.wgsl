// IQ2_S, blocks of 256: the grid; plane 0, 32 bytes of the low 8 bits of indices and 32 of signs; plane 1, 8 bytes of
// their high two bits and 8 with s of both halves of a group; plane 2, d. x = d (s + 1/2) / 4 times a number of the grid.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!include "lib/iq2.wgsl"

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let at = PLANE_0 + 16u * b + j;
    let scales = PLANE_1 + 4u * b + j / 4u;
    let shift = 8u * (j % 4u);
    let high = vec4<u32>(word_at(scales) >> shift) >> vec4<u32>(0u, 2u, 4u, 6u);
    let indices = unpack4xU8(word_at(at)) | ((high & vec4<u32>(3u)) << vec4<u32>(8u));
    let s = word_at(scales + 2u) >> shift;
    return group_of(indices, unpack4xU8(word_at(at + 8u)), two_scales(s, half_at(PLANE_2, b)));
}
