// Philox4x32-10 (Salmon et al. 2011, section 3.3), as in wgllm/sampling/rng.py.

// The upper word of a b.
fn high_product(a: u32, b: u32) -> u32 {
    let low = (a & 0xFFFFu) * (b & 0xFFFFu);
    let cross = (a >> 16u) * (b & 0xFFFFu) + (low >> 16u);
    let other = (a & 0xFFFFu) * (b >> 16u) + (cross & 0xFFFFu);
    return (a >> 16u) * (b >> 16u) + (cross >> 16u) + (other >> 16u);
}

// Four random words of a key and a counter below 2^32.
fn philox(seed: vec2<u32>, counter: u32) -> vec4<u32> {
    var x = vec4<u32>(counter, 0u, 0u, 0u);
    var key = seed;
    for (var i = 0u; i < 10u; i++) {
        let a = vec2<u32>(high_product(0xD2511F53u, x.x), 0xD2511F53u * x.x);
        let b = vec2<u32>(high_product(0xCD9E8D57u, x.z), 0xCD9E8D57u * x.z);
        x = vec4<u32>(b.x ^ x.y ^ key.x, b.y, a.x ^ x.w ^ key.y, a.y);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return x;
}
