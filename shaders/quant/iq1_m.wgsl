// IQ1_M, blocks of 256: the grid; plane 0, the whole blocks: 32 bytes of the low 8 bits of indices, 16 of four bits each
// (three high bits of an index, the sign of its ± 1), four times 16 bits: three of s of four halves of groups, and four of
// d, the lowest first. x = d (2 s + 1) / 8 (8 n ± 1).
//!const PLANE_0: u32
//!include "lib/iq1.wgsl"

fn read_group(g: u32) -> Group {
    let j = g % 8u;
    let block = PLANE_0 + 14u * (g / 8u);
    let high = word_at(block + 8u + j / 2u) >> (16u * (j % 2u));
    let a = word_at(block + 12u);
    let b = word_at(block + 13u);
    let half = ((a >> 12u) & 15u) | ((a >> 24u) & 0xF0u) | ((b >> 4u) & 0xF00u) | ((b >> 16u) & 0xF000u);
    let s = select(a, b, j >= 4u) >> (16u * ((j / 2u) % 2u) + 6u * (j % 2u));
    let d = vec2<f32>(odd(s), odd(s >> 3u)) * (0.125 * unpack2x16float(half).x);
    return group_of(word_at(block + j), high, d);
}
