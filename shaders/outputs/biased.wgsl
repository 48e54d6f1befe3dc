// y = v + bias.
//!include "lib/one_part.wgsl"

@group(0) @binding(AFTER_INPUTS) var<storage, read> bias: array<f32>;

fn finish(r: u32, o: u32, v: f32) {
    y[place(r, o)] = v + bias[o];
}
