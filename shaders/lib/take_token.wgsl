// What a kernel that chooses the next token does with it: the next step of one row reads it, at the next position.
//
// Bindings:
//   1  token  i32 [1]
//   2  pos    i32 [1]
//   3  taken  i32 [2]  the token, and 1 if some logit was no finite number
@group(0) @binding(1) var<storage, read_write> token: array<i32>;
@group(0) @binding(2) var<storage, read_write> pos: array<i32>;
@group(0) @binding(3) var<storage, read_write> taken: array<i32>;

// `first` stands before all candidates.
fn take_token(pair: vec2<u32>, first: vec2<u32>) {
    let bad = first.x == NOT_FINITE;
    let chosen = select(token_of(pair), 0, bad);
    token[0] = chosen;
    pos[0] += 1;
    taken[0] = chosen;
    taken[1] = i32(bad);
}
