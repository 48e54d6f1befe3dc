// For formats of single numbers: groups from quad(i), numbers 4i..4i+3.
//!include "lib/group.wgsl"

alias Group = Quads;

fn read_group(g: u32) -> Group {
    let i = 8u * g;
    return Group(
        quad(i), quad(i + 1u), quad(i + 2u), quad(i + 3u),
        quad(i + 4u), quad(i + 5u), quad(i + 6u), quad(i + 7u),
    );
}

fn dequantized(v: Group) -> Quads {
    return v;
}

fn dot_read(v: Group, x: Quads) -> f32 {
    return dot_quads(v, x);
}
