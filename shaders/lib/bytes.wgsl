// For formats of small quants: groups from read_group(g). Number i is (byte i - ZERO) d + m, where the first 16
// numbers and the last 16 have a d and an m each; MINIMA says whether the format has m at all.
//!include "lib/group.wgsl"

struct Group {
    low: vec4<u32>,   // bytes of numbers 0..15
    high: vec4<u32>,  // bytes of numbers 16..31
    d: vec2<f32>,
    m: vec2<f32>,
}

// Of each byte of w the bits from `shift` that `bits` selects, which is the same for the four bytes of a word.
fn fields(w: vec4<u32>, shift: u32, bits: u32) -> vec4<u32> {
    return (w >> vec4<u32>(shift)) & vec4<u32>(bits);
}

fn numbers(w: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(w)) - ZERO;
}

fn put_bytes(i: u32, w: vec4<u32>, d: f32, m: f32) {
    put(i, numbers(w.x) * d + m);
    put(i + 1u, numbers(w.y) * d + m);
    put(i + 2u, numbers(w.z) * d + m);
    put(i + 3u, numbers(w.w) * d + m);
}

fn dequantize_group(g: u32) {
    let v = read_group(g);
    put_bytes(0u, v.low, v.d.x, v.m.x);
    put_bytes(4u, v.high, v.d.y, v.m.y);
}

fn dot_bytes(w: vec4<u32>, x: u32) -> f32 {
    return dot(numbers(w.x), input(x)) + dot(numbers(w.y), input(x + 1u))
        + dot(numbers(w.z), input(x + 2u)) + dot(numbers(w.w), input(x + 3u));
}

fn sum_input(x: u32) -> f32 {
    return dot(vec4<f32>(1.0), input(x) + input(x + 1u) + input(x + 2u) + input(x + 3u));
}

fn dot_group(g: u32, x: u32) -> f32 {
    let v = read_group(g);
    var sum = v.d.x * dot_bytes(v.low, x) + v.d.y * dot_bytes(v.high, x + 4u);
    if (MINIMA) {
        sum += v.m.x * sum_input(x) + v.m.y * sum_input(x + 4u);
    }
    return sum;
}
