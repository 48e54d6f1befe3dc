// F16: plane 0, the numbers, two to a word.
//!const PLANE_0: u32
//!include "lib/quads.wgsl"

fn quad(i: u32) -> vec4<f32> {
    let at = PLANE_0 + 2u * i;
    return vec4<f32>(unpack2x16float(word_at(at)), unpack2x16float(word_at(at + 1u)));
}
