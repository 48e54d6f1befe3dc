// KV state of type q8_0: of each block of 32 numbers 8 words of signed quants; from word SCALES on, of each cell the
// float16 scales of its blocks, in whole words. x = d q. A kernel that is composed with kv/<type>.wgsl defines
// `state: array<vec4<u32>>`, a storage buffer, and gets state_at(i): numbers 4i..4i+3.
//!const HEAD_DIM: u32
//!const SCALES: u32
//!include "lib/state_scale.wgsl"

fn state_at(i: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(state[i / 4u][i % 4u])) * state_scale(i / 8u);
}
