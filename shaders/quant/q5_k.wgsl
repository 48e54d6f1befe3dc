// Q5_K, blocks of 256: plane 0, the whole blocks of 176 bytes: d, dmin and 12 bytes of scales; 32 bytes of fifth
// bits (group j's are bit j); 128 bytes of low quants (32 bytes hold two groups, the first in the low halves). x =
// d s q - dmin t.
//!const PLANE_0: u32
//!include "lib/bytes.wgsl"
//!include "lib/six_bit_scales.wgsl"

const ZERO: f32 = 0.0;
const MINIMA: bool = true;

fn read_group(g: u32) -> Group {
    let j = g % 8u;
    let block = PLANE_0 / 4u + 11u * (g / 8u);
    let at = block + 3u + 2u * (j / 2u);
    let shift = 4u * (j % 2u);
    let four = vec4<u32>(4u);
    let low = fields(weights[at], shift, 0x0F0F0F0Fu) | (fields(weights[block + 1u], j, 0x01010101u) << four);
    let high = fields(weights[at + 1u], shift, 0x0F0F0F0Fu) | (fields(weights[block + 2u], j, 0x01010101u) << four);
    let dm = scale_and_minimum(weights[block], j);
    return Group(low, high, vec2<f32>(dm.x), vec2<f32>(dm.y));
}
