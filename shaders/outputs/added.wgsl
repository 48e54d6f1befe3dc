// y = v + residual.
//!include "lib/one_part.wgsl"

@group(0) @binding(AFTER_INPUTS) var<storage, read> residual: array<f32>;

fn finish(r: u32, o: u32, v: f32) {
    y[place(r, o)] = v + residual[place(r, o)];
}
