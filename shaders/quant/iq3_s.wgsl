// IQ3_S, blocks of 256: the grid; plane 0, 64 bytes of the low 8 bits of indices, 8 of their ninth bits, 32 of signs and
// 4 with a half byte s of each group; plane 1, d. x = d (2 s + 1) times a number of the grid.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!include "lib/iq3.wgsl"

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let block = PLANE_0 + 27u * b;
    let ninth = word_at(block + 16u + j / 4u) >> (8u * (j % 4u));
    let shifts = vec4<u32>(8u, 7u, 6u, 5u);
    let first = (vec4<u32>(ninth) << shifts) & vec4<u32>(256u);
    let second = (vec4<u32>(ninth >> 4u) << shifts) & vec4<u32>(256u);
    let minus = word_at(block + 18u + j);
    let low = sixteen(unpack4xU8(word_at(block + 2u * j)) | first, minus);
    let high = sixteen(unpack4xU8(word_at(block + 2u * j + 1u)) | second, minus >> 16u);
    let s = (word_at(block + 26u) >> (4u * j)) & 15u;
    let d = f32(2u * s + 1u) * half_at(PLANE_1, b);
    return Group(low, high, vec2<f32>(d), vec2<f32>());
}
