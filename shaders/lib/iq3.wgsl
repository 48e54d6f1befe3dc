// The IQ3 formats: indices of 4 numbers.
//!include "lib/signed_grid.wgsl"

// 16 numbers, with the signs that the lowest 16 bits of `minus` say.
fn sixteen(indices: vec4<u32>, minus: u32) -> vec4<u32> {
    return vec4<u32>(
        signed(word_at(indices.x), minus),
        signed(word_at(indices.y), minus >> 4u),
        signed(word_at(indices.z), minus >> 8u),
        signed(word_at(indices.w), minus >> 12u),
    );
}
