// The 16 levels of the IQ4 formats, from -127 to 113.

// As bytes 128 + level, four to a word.
const LEVELS = vec4<u32>(0x3F2D1801u, 0x766A5D4Fu, 0xA6998D81u, 0xF1D9C5B5u);

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
