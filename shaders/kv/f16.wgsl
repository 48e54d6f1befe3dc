// KV state of type f16, two numbers a word. A kernel that is composed with kv/<type>.wgsl defines
// `state: array<vec4<u32>>`, a storage buffer, and gets state_at(i): numbers 4i..4i+3.

fn state_at(i: u32) -> vec4<f32> {
    let half_of = 2u * (i % 2u);
    return vec4<f32>(unpack2x16float(state[i / 2u][half_of]), unpack2x16float(state[i / 2u][half_of + 1u]));
}
