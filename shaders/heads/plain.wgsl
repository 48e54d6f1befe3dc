// Heads of queries and keys as they are; kernels/rope_write.wgsl is composed with this or with heads/normed.wgsl.

fn head_factor(squares: f32, at: u32) -> f32 {
    return 1.0;
}

fn head_weight(part: u32, i: u32) -> f32 {
    return 1.0;
}
