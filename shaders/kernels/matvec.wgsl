// y[r, OUT_FIRST + o] = x[r] · w[o], for few rows x and a matrix w of any format. One invocation per number of y.
//
// Composed with quant/<format>.wgsl. Bindings:
//   0  weights  packed w [OUTPUTS, INPUTS]
//   1  x        f32 [ROWS, INPUTS], its size rounded up to 16 bytes
//   2  y        f32 [ROWS, OUT_WIDTH]
// A matrix too large for one binding lies in several, some of its rows in each: OUT_WIDTH is then the width of the
// whole product and OUT_FIRST the first output of this part. Any number of workgroups does.
//!const ROWS: u32
//!const INPUTS: u32
//!const OUTPUTS: u32
//!const OUT_WIDTH: u32
//!const OUT_FIRST: u32 = 0
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn input(i: u32) -> vec4<f32> {
    return x[i];
}

fn product(r: u32, o: u32) -> f32 {
    let groups = INPUTS / 32u;
    var sum = 0.0;
    for (var k = 0u; k < groups; k++) {
        sum += dot_group(o * groups + k, 8u * (r * groups + k));
    }
    return sum;
}

// For formats of single numbers, whose rows may begin and end within a group.
fn product_of_any_width(r: u32, o: u32) -> f32 {
    let first = o * INPUTS;
    var sum = 0.0;
    for (var g = first / 32u; 32u * g < first + INPUTS; g++) {
        dequantize_group(g);
        for (var j = 0u; j < 32u; j++) {
            let k = 32u * g + j - first;  // before the row: wraps round to a large number
            if (k < INPUTS) {
                let at = r * INPUTS + k;
                sum += group[j] * x[at / 4u][at % 4u];
            }
        }
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn matvec(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * OUTPUTS; i += groups.x * WORKGROUP) {
        let r = i / OUTPUTS;
        let o = i % OUTPUTS;
        if (INPUTS % 32u == 0u) {
            y[r * OUT_WIDTH + OUT_FIRST + o] = product(r, o);
        } else {
            y[r * OUT_WIDTH + OUT_FIRST + o] = product_of_any_width(r, o);
        }
    }
}
