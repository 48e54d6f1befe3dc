// IQ3_XXS, blocks of 256: the grid; plane 0, 64 bytes of indices and 32 of signs and scales, a word of each group; plane
// 1, d. x = d (s + 1/2) / 2 times a number of the grid; s is the highest four bits of the word, below four times 7 signs.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/iq3.wgsl"

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let block = PLANE_0 + 24u * b;
    let word = word_at(block + 16u + j);
    let low = sixteen(
        unpack4xU8(word_at(block + 2u * j)),
        eight_signs(word) | (eight_signs(word >> 7u) << 8u),
    );
    let high = sixteen(
        unpack4xU8(word_at(block + 2u * j + 1u)),
        eight_signs(word >> 14u) | (eight_signs(word >> 21u) << 8u),
    );
    let d = (f32(word >> 28u) + 0.5) * (0.5 * half_at(PLANE_1, b));
    return Group(low, high, vec2<f32>(d), vec2<f32>());
}
