// For formats whose quants are indices of a grid, which is a table at the beginning of `weights`. Its entries are words
// of four bytes, or half words of eight places of two bits each, the first number lowest.
//!include "lib/bytes.wgsl"

fn half_word(i: u32) -> u32 {
    return (word_at(i / 2u) >> (16u * (i % 2u))) & 0xFFFFu;
}

// The lowest four places of `places` as bytes.
fn spread(places: u32) -> u32 {
    let pairs = (places | (places << 12u)) & 0x000F000Fu;
    return (pairs | (pairs << 6u)) & 0x03030303u;
}
