// y = v.
//!include "lib/one_part.wgsl"

fn finish(r: u32, o: u32, v: f32) {
    y[place(r, o)] = v;
}
