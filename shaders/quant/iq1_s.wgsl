// IQ1_S, blocks of 256: the grid; plane 0, 32 bytes of the low 8 bits of indices, then of each group 16 bits: four times
// three high bits of an index, three of s, the sign of the group's ± 1; plane 1, d. x = d (2 s + 1) / 8 (8 n ± 1).
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/iq1.wgsl"

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let block = PLANE_0 + 12u * b;
    let bits = word_at(block + 8u + j / 2u) >> (16u * (j % 2u));
    let high = (bits & 7u) | ((bits << 1u) & 0x70u) | ((bits << 2u) & 0x700u) | ((bits << 3u) & 0x7000u)
        | select(0u, 0x8888u, (bits & 0x8000u) != 0u);
    let d = odd(bits >> 12u) * (0.125 * half_at(PLANE_1, b));
    return group_of(word_at(block + j), high, vec2<f32>(d));
}
