// Candidates are all tokens: their logits.
@group(0) @binding(0) var<storage, read> logits: array<f32>;

fn candidate(i: u32) -> vec2<u32> {
    return pair_of(logits[i], i);
}
