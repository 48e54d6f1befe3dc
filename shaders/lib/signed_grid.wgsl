// For grids of magnitudes, with a sign for each number. Bytes are 128 + number.
//!include "lib/grid.wgsl"

const ZERO: f32 = 128.0;
const MINIMA: bool = false;

// Four magnitudes, 1 to 127, with the signs that the lowest four bits of `minus` say.
fn signed(magnitudes: u32, minus: u32) -> u32 {
    let ones = ((minus & 15u) * 0x00204081u) & 0x01010101u;  // a bit to each byte
    return ((magnitudes ^ (ones * 255u)) + ones) ^ 0x80808080u;
}

// Eight signs of the lowest 7 bits of `minus`: an even number is negative.
fn eight_signs(minus: u32) -> u32 {
    let seven = minus & 127u;
    return seven | ((countOneBits(seven) & 1u) << 7u);
}
