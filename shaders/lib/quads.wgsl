// For formats of single numbers: groups from quad(i), numbers 4i..4i+3.
//!include "lib/group.wgsl"

fn dequantize_group(g: u32) {
    for (var i = 0u; i < 8u; i++) {
        put(i, quad(8u * g + i));
    }
}

fn dot_group(g: u32, x: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {
        sum += dot(quad(8u * g + i), input(x + i));
    }
    return sum;
}
