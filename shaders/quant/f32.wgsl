// F32: plane 0, the numbers.
//!const PLANE_0: u32
//!include "lib/quads.wgsl"

fn quad(i: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(weights[PLANE_0 / 4u + i]);
}
