// BF16: plane 0, the upper halves of float32 numbers, two to a word.
//!const PLANE_0: u32
//!include "lib/quads.wgsl"

fn quad(i: u32) -> vec4<f32> {
    let w = vec2<u32>(word_at(PLANE_0 + 2u * i), word_at(PLANE_0 + 2u * i + 1u));
    let low = w << vec2<u32>(16u);
    let high = w & vec2<u32>(0xFFFF0000u);
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}
