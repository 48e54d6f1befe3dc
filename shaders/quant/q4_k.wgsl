// Q4_K, blocks of 256: plane 0, the whole blocks of 144 bytes: d, dmin and 12 bytes of scales; 128 bytes of quants
// (32 bytes hold two groups, the first in the low halves). x = d s q - dmin t.
//!const PLANE_0: u32
//!include "lib/bytes.wgsl"
//!include "lib/six_bit_scales.wgsl"

const ZERO: f32 = 0.0;
const MINIMA: bool = true;

fn read_group(g: u32) -> Group {
    let j = g % 8u;
    let block = PLANE_0 / 4u + 9u * (g / 8u);
    let at = block + 1u + 2u * (j / 2u);
    let shift = 4u * (j % 2u);
    let low = fields(weights[at], shift, 0x0F0F0F0Fu);
    let high = fields(weights[at + 1u], shift, 0x0F0F0F0Fu);
    let dm = scale_and_minimum(weights[block], j);
    return Group(low, high, vec2<f32>(dm.x), vec2<f32>(dm.y));
}
