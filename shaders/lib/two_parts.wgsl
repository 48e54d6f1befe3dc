// Outputs that two rows of w make: gate and up.
//!include "lib/math.wgsl"
const PARTS: u32 = 2u;

fn finish(r: u32, o: u32, v: f32) {
    y[place(r, o)] = v;
}
