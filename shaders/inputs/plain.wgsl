// Rows as they are.

const NORMED: bool = false;
const AFTER_INPUTS: u32 = AFTER_ROWS;

fn input(i: u32) -> vec4<f32> {
    return x[i];
}

fn norm_factor(squares: f32) -> f32 {
    return 1.0;
}

fn row_factor(r: u32, at: u32) -> f32 {
    return 1.0;
}
