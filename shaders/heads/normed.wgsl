// Heads of queries and keys after rms_norm: v / sqrt(mean(v²) + EPS) · (w + OFFSET), with a w of queries and one of keys.
//
// Binding 7: norms f32 [2, HEAD_DIM].
//!const EPS: f32
//!const OFFSET: f32 = 0.0
//!include "lib/reduce.wgsl"

@group(0) @binding(7) var<storage, read> norms: array<f32>;

// All invocations together, each with the squares that it has seen and its place.
fn head_factor(squares: f32, at: u32) -> f32 {
    return 1.0 / sqrt(workgroup_sum(squares, at) / f32(HEAD_DIM) + EPS);
}

fn head_weight(part: u32, i: u32) -> f32 {
    return norms[part * HEAD_DIM + i] + OFFSET;
}
