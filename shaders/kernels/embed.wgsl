// y[r] = table[token[r]], for a table of any format. One invocation per group of 32 numbers that a row touches.
//
// Composed with quant/<format>.wgsl. Bindings:
//   0  weights  packed rows FIRST .. FIRST + COUNT of the table, each WIDTH wide
//   1  token    i32 [ROWS]
//   2  y        f32 [ROWS, WIDTH]
// A table too large for one binding lies in several: rows of y whose token is in another part stay as they are.
// Any number of workgroups does.
//!const ROWS: u32
//!const WIDTH: u32
//!const COUNT: u32
//!const FIRST: u32 = 0
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> token: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// Rows of formats of single numbers may begin and end within a group.
const SPAN: u32 = select((WIDTH + 30u) / 32u + 1u, WIDTH / 32u, WIDTH % 32u == 0u);

// There are no activations here, but the format's file asks for them.
fn input(i: u32) -> vec4<f32> {
    return vec4<f32>();
}

@compute @workgroup_size(WORKGROUP)
fn embed(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * SPAN; i += groups.x * WORKGROUP) {
        let r = i / SPAN;
        let row = u32(token[r]) - FIRST;  // before FIRST: wraps round to a large number
        if (row < COUNT) {
            let first = row * WIDTH;
            let g = first / 32u + i % SPAN;
            if (32u * g < first + WIDTH) {
                dequantize_group(g);
                for (var j = 0u; j < 32u; j++) {
                    let k = 32u * g + j - first;
                    if (k < WIDTH) {
                        y[r * WIDTH + k] = group[j];
                    }
                }
            }
        }
    }
}
