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

fn dequantized(v: Group) -> Quads {
    let d = v.d;
    let m = v.m;
    return Quads(
        numbers(v.low.x) * d.x + m.x, numbers(v.low.y) * d.x + m.x,
        numbers(v.low.z) * d.x + m.x, numbers(v.low.w) * d.x + m.x,
        numbers(v.high.x) * d.y + m.y, numbers(v.high.y) * d.y + m.y,
        numbers(v.high.z) * d.y + m.y, numbers(v.high.w) * d.y + m.y,
    );
}

fn dot_read(v: Group, x: Quads) -> f32 {
    let low = dot(numbers(v.low.x), x.a) + dot(numbers(v.low.y), x.b)
        + dot(numbers(v.low.z), x.c) + dot(numbers(v.low.w), x.d);
    let high = dot(numbers(v.high.x), x.e) + dot(numbers(v.high.y), x.f)
        + dot(numbers(v.high.z), x.g) + dot(numbers(v.high.w), x.h);
    var sum = v.d.x * low + v.d.y * high;
    if (MINIMA) {
        let ones = vec4<f32>(1.0);
        sum += v.m.x * dot(ones, x.a + x.b + x.c + x.d) + v.m.y * dot(ones, x.e + x.f + x.g + x.h);
    }
    return sum;
}
