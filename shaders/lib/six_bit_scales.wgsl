// Scales and minima of Q4_K and Q5_K. `head`: d and dmin in the first word, then 12 bytes. Bytes 0-3 hold the
// scales of groups 0-3 in their low six bits, 4-7 likewise the minima. Bytes 8-11 hold the low four bits of the
// scales (low half) and minima (high half) of groups 4-7, whose high two bits are on top of bytes 0-7.

// d s and -dmin t of group j of the block.
fn scale_and_minimum(head: vec4<u32>, j: u32) -> vec2<f32> {
    let shift = 8u * (j % 4u);
    let bytes = vec3<u32>(head.y, head.z, head.w) >> vec3<u32>(shift);
    var st = vec2<u32>(bytes.x, bytes.y) & vec2<u32>(63u);
    if (j >= 4u) {
        let top = (vec2<u32>(bytes.x, bytes.y) >> vec2<u32>(2u)) & vec2<u32>(48u);
        st = vec2<u32>(bytes.z & 15u, (bytes.z >> 4u) & 15u) | top;
    }
    let d = unpack2x16float(head.x);
    return vec2<f32>(st) * vec2<f32>(d.x, -d.y);
}
