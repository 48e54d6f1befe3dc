// The scale of block b of a KV state of type q8_0 or q4_0.
//!const HEAD_DIM: u32
//!const SCALES: u32

const_assert HEAD_DIM % 32u == 0u;

fn state_scale(b: u32) -> f32 {
    let blocks = HEAD_DIM / 32u;
    let at = SCALES + b / blocks * ((blocks + 1u) / 2u) + b % blocks / 2u;
    return unpack2x16float(state[at / 4u][at % 4u] >> (16u * (b % blocks % 2u))).x;
}
