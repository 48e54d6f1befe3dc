// IQ4_XS, blocks of 256: plane 0, 128 bytes of quants (16 bytes hold a group: number i low, number i + 16 high);
// plane 1, d and 16 bits of high scale bits, then a word of low scale bits. x = d (s - 32) LEVELS[q].
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/bytes.wgsl"
//!include "lib/iq4_levels.wgsl"

const ZERO: f32 = 128.0;
const MINIMA: bool = false;

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let q = weights[PLANE_0 / 4u + g];
    let head = word_at(PLANE_1 + 2u * b);
    let low = (word_at(PLANE_1 + 2u * b + 1u) >> (4u * j)) & 15u;
    let high = (head >> (16u + 2u * j)) & 3u;
    let d = (f32(low | (high << 4u)) - 32.0) * unpack2x16float(head).x;
    return Group(levels4(q, 0u), levels4(q, 4u), vec2<f32>(d), vec2<f32>());
}
