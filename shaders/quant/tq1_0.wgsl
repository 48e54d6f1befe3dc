// TQ1_0, blocks of 256: plane 0, 48 bytes of five quants each (32 bytes hold groups 0-4, one digit each; the first four
// digits of the other 16 bytes are groups 5 and 6, their last one is half of group 7); plane 1, 4 bytes of four quants
// each (the rest of group 7); plane 2, d. x = d (q - 1), where q is a digit of a byte / 256 to the base 3.
//!const PLANE_0: u32
//!const PLANE_1: u32
//!const PLANE_2: u32
//!include "lib/bytes.wgsl"

const ZERO: f32 = 1.0;
const MINIMA: bool = false;

// Which digit of the four bytes of each word of w: the first one behind a factor of 1, 3, 9, 27, 81.
fn digits(w: vec4<u32>, factor: vec4<u32>) -> vec4<u32> {
    let two = vec4<u32>(0x00FF00FFu);
    let even = ((w & two) * factor) & two;
    let odd = (((w >> vec4<u32>(8u)) & two) * factor) & two;
    let three = vec4<u32>(3u);
    return (((even * three) >> vec4<u32>(8u)) & vec4<u32>(0x00030003u)) | ((odd * three) & vec4<u32>(0x03000300u));
}

fn factor_of(digit: u32) -> u32 {
    return select((0x1B090301u >> (8u * (digit & 3u))) & 255u, 81u, digit == 4u);
}

fn read_group(g: u32) -> Group {
    let b = g / 8u;
    let j = g % 8u;
    let at = PLANE_0 / 4u + 3u * b;
    var low = weights[at];
    var high = weights[at + 1u];
    var low_factor = factor_of(j);
    var high_factor = vec4<u32>(low_factor);
    if (j >= 5u) {
        low = weights[at + 2u];
        high = low;
        low_factor = factor_of(2u * j - 10u);
        high_factor = vec4<u32>(factor_of(2u * j - 9u));
    }
    if (j == 7u) {
        high = vec4<u32>(word_at(PLANE_1 + b));
        high_factor = vec4<u32>(1u, 3u, 9u, 27u);
    }
    let d = vec2<f32>(half_at(PLANE_2, b));
    return Group(digits(low, vec4<u32>(low_factor)), digits(high, high_factor), d, vec2<f32>());
}
