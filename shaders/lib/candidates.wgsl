// Tokens and their logits as pairs of words whose order as numbers, the first word before the second, is the order in
// which candidates stand: the larger logit first, of equals the lower id. A kernel is composed with candidates/*.wgsl,
// which says where candidates come from: `fn candidate(i: u32) -> vec2<u32>`, of COUNT.

const NOTHING: vec2<u32> = vec2<u32>(0u, 0u);  // after every candidate
const NOT_FINITE: u32 = 0xFFFFFFFFu;  // the first word of a NaN or an infinity: before every candidate

fn pair_of(logit: f32, id: u32) -> vec2<u32> {
    var bits = bitcast<u32>(logit);
    if ((bits & 0x7F800000u) == 0x7F800000u) {  // compilers may take x != x for false
        return vec2<u32>(NOT_FINITE, ~id);
    }
    bits = select(bits, 0u, bits == 0x80000000u);  // -0 is 0
    return vec2<u32>(bits ^ select(0x80000000u, 0xFFFFFFFFu, (bits & 0x80000000u) != 0u), ~id);
}

fn logit_of(pair: vec2<u32>) -> f32 {
    return bitcast<f32>(pair.x ^ select(0xFFFFFFFFu, 0x80000000u, (pair.x & 0x80000000u) != 0u));
}

fn token_of(pair: vec2<u32>) -> i32 {
    return i32(~pair.y);
}

fn stands_before(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y > b.y);
}
