// Rows of CHOSEN parts, each multiplied with its weight; see rows/summed.

const NORMED: bool = false;
const AFTER_INPUTS: u32 = AFTER_ROWS;

fn input(i: u32) -> vec4<f32> {
    return x[i] * shares[i / (INPUTS / CHOSEN / 4u)];
}

fn norm_factor(squares: f32) -> f32 {
    return 1.0;
}

fn row_factor(r: u32, at: u32) -> f32 {
    return 1.0;
}
