// Bit i of h as bit 4 of byte i: 16 bytes from bit `first` on.
fn fifth_bits(h: u32, first: u32) -> vec4<u32> {
    let bits = (vec4<u32>(h) >> (vec4<u32>(0u, 4u, 8u, 12u) + first)) & vec4<u32>(15u);
    // The product has bit k of the four at bit 8k.
    return ((bits * 0x00204081u) & vec4<u32>(0x01010101u)) << vec4<u32>(4u);
}
