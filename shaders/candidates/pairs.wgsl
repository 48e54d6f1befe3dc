// Candidates that an earlier dispatch has left.
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;

fn candidate(i: u32) -> vec2<u32> {
    return pairs[i];
}
