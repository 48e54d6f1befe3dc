// Stores a cell of a KV state of type q8_0; kv/q8_0.wgsl describes its words, kv_store/f32.wgsl what a kernel defines.
//!const SCALES: u32
//!include "lib/store_blocks.wgsl"

// Quantizes numbers 32 b … of the cell to words from `place` on; returns their scale.
fn store_block(b: u32, place: u32) -> f32 {
    var largest = 0.0;
    for (var n = 0u; n < 32u; n++) {
        largest = max(largest, abs(number(32u * b + n)));
    }
    let d = largest / 127.0;
    let inverse = select(1.0 / d, 0.0, d == 0.0);
    for (var n = 0u; n < 8u; n++) {
        let i = 32u * b + 4u * n;
        let scaled = vec4<f32>(number(i), number(i + 1u), number(i + 2u), number(i + 3u)) * inverse;
        let whole = trunc(scaled);
        // Halves go away from zero.
        state[place + n] = pack4xI8(vec4<i32>(whole + trunc(2.0 * (scaled - whole))));
    }
    return d;
}

fn store_cell(cell: u32, at: u32) {
    store_blocks(cell, at, 8u);
}
