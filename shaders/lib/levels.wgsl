// For formats whose quants are places among 16 levels. Who includes this defines them as bytes 128 + level, four to a
// word:
//   const LEVELS: vec4<u32>

fn level(q: u32) -> u32 {
    return (LEVELS[q / 4u] >> (8u * (q % 4u))) & 255u;
}

// The levels of the quants that the bytes of w hold from bit `shift` on.
fn levels(w: u32, shift: u32) -> u32 {
    let q = w >> shift;
    return level(q & 15u) | (level((q >> 8u) & 15u) << 8u)
        | (level((q >> 16u) & 15u) << 16u) | (level((q >> 24u) & 15u) << 24u);
}

fn levels4(w: vec4<u32>, shift: u32) -> vec4<u32> {
    return vec4<u32>(levels(w.x, shift), levels(w.y, shift), levels(w.z, shift), levels(w.w, shift));
}
