// IQ2_XXS, blocks of 256: the grid; plane 0, of each group four indices and a word of signs and scale, 64 bytes; plane
// 1, d. x = d (s + 1/2) / 4 times a number of the grid; s is the highest four bits of the word, below four times 7 signs.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/iq2.wgsl"

fn read_group(g: u32) -> Group {
    let at = PLANE_0 + 2u * g;
    let word = word_at(at + 1u);
    let minus = vec4<u32>(
        eight_signs(word), eight_signs(word >> 7u), eight_signs(word >> 14u), eight_signs(word >> 21u),
    );
    let d = (f32(word >> 28u) + 0.5) * (0.25 * half_at(PLANE_1, g / 8u));
    return group_of(unpack4xU8(word_at(at)), minus, vec2<f32>(d));
}
