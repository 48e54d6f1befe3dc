// KV state of type f32. A kernel that is composed with kv/<type>.wgsl defines `state: array<vec4<u32>>`, a storage
// buffer, and gets state_at(i): numbers 4i..4i+3.

fn state_at(i: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(state[i]);
}
