// Stores a cell of a KV state of type q4_0; kv/q4_0.wgsl describes its words, kv_store/f32.wgsl what a kernel defines.
//!const SCALES: u32
//!include "lib/store_blocks.wgsl"

fn store_block(b: u32, place: u32) -> f32 {
    var farthest = number(32u * b);
    for (var n = 1u; n < 32u; n++) {
        let v = number(32u * b + n);
        if (abs(v) > abs(farthest)) {
            farthest = v;
        }
    }
    let d = farthest / -8.0;  // so that it becomes quant 0
    let inverse = select(1.0 / d, 0.0, d == 0.0);
    for (var n = 0u; n < 4u; n++) {
        let i = 32u * b + 4u * n;
        let j = i + 16u;
        let low = vec4<f32>(number(i), number(i + 1u), number(i + 2u), number(i + 3u)) * inverse + 8.5;
        let high = vec4<f32>(number(j), number(j + 1u), number(j + 2u), number(j + 3u)) * inverse + 8.5;
        state[place + n] = pack4xU8(vec4<u32>(min(low, vec4<f32>(15.0))))
            | (pack4xU8(vec4<u32>(min(high, vec4<f32>(15.0)))) << 4u);
    }
    return d;
}

fn store_cell(cell: u32, at: u32) {
    store_blocks(cell, at, 4u);
}
