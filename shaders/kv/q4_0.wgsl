// KV state of type q4_0: of each block of 32 numbers 4 words of quants (number i low, number i + 16 high); from word
// SCALES on, of each cell the float16 scales of its blocks, in whole words. x = d (q - 8). A kernel that is composed
// with kv/<type>.wgsl defines `state: array<vec4<u32>>`, a storage buffer, and gets state_at(i): numbers 4i..4i+3.
//!const HEAD_DIM: u32
//!const SCALES: u32
//!include "lib/state_scale.wgsl"

fn state_at(i: u32) -> vec4<f32> {
    let word = state[i / 8u][i % 4u];
    let quants = unpack4xU8((word >> (i & 4u)) & 0x0F0F0F0Fu);
    return (vec4<f32>(quants) - 8.0) * state_scale(i / 8u);
}
