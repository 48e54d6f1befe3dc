// Rows as rms_norm makes them: x / sqrt(mean(x²) + EPS) · (norm + OFFSET). The quotient, one number per row, is taken
// of the finished products. INPUTS is a multiple of 4.
//!const EPS: f32
//!const OFFSET: f32 = 0.0
//!include "lib/reduce.wgsl"

const NORMED: bool = true;
const AFTER_INPUTS: u32 = AFTER_ROWS + 1u;
const QUADS: u32 = INPUTS / 4u;

const_assert INPUTS % 4u == 0u;

@group(0) @binding(AFTER_ROWS) var<storage, read> norm: array<vec4<f32>>;

fn input(i: u32) -> vec4<f32> {
    return x[i] * (norm[select(i % QUADS, i, ROWS == 1u)] + OFFSET);
}

fn norm_factor(squares: f32) -> f32 {
    return 1.0 / sqrt(squares / f32(INPUTS) + EPS);
}

fn row_factor(r: u32, at: u32) -> f32 {
    var squares = 0.0;
    for (var i = at; i < QUADS; i += WORKGROUP) {
        let v = x[r * QUADS + i];
        squares += dot(v, v);
    }
    return norm_factor(workgroup_sum(squares, at));
}
