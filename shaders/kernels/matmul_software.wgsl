// A product (lib/product.wgsl) on devices that compute several invocations at once and read memory one by one, as
// processors do that imitate a graphics card. Each invocation makes ROWS_EACH rows (1, 2, 4, 8) of OUTPUTS_EACH outputs
// (1, 2, 4; half as many at most where an output has two parts), so that what it reads is used often. Any number of
// workgroups does.
//
// Composed with one of lanes/inputs_*.wgsl too. INPUTS is a multiple of 32.
//!const WORKGROUP: u32 = 64
//!const ROWS_EACH: u32 = 1
//!const OUTPUTS_EACH: u32 = 1
//!include "lib/product.wgsl"

const_assert INPUTS % 32u == 0u;

// Products of an invocation with each row. Those of output n are from PARTS n on.
const PRODUCTS: u32 = PARTS * OUTPUTS_EACH;
const ROW_TILES: u32 = (ROWS + ROWS_EACH - 1u) / ROWS_EACH;
const TILE: u32 = WORKGROUP * OUTPUTS_EACH;
const TILES: u32 = ROW_TILES * ((OUTPUTS + TILE - 1u) / TILE);

const_assert PRODUCTS <= 4u;

// A group of up to four rows of w.
struct Weights {
    a: Quads,
    b: Quads,
    c: Quads,
    d: Quads,
}

fn read_weights(n: u32, o: u32, g: u32) -> Quads {
    return dequantized(read_group(group_of_w(n % PARTS, o + WORKGROUP * (n / PARTS), g)));
}

fn products(w: Weights, r: u32, g: u32, lane: u32) -> vec4<f32> {
    let x = inputs_for_all(group_of_x(r, g), lane);
    var v = vec4<f32>(dot_quads(w.a, x), 0.0, 0.0, 0.0);
    if (PRODUCTS > 1u) {
        v.y = dot_quads(w.b, x);
    }
    if (PRODUCTS > 2u) {
        v.z = dot_quads(w.c, x);
        v.w = dot_quads(w.d, x);
    }
    return v;
}

// Row r of outputs o, o + WORKGROUP, ...
fn finish_row(r: u32, o: u32, v: vec4<f32>, at: u32) {
    if (!is_row(r)) {  // for all invocations alike
        return;
    }
    let sums = v * row_factor(r, at);
    for (var n = 0u; n < OUTPUTS_EACH; n++) {
        if (o + WORKGROUP * n < OUTPUTS) {
            finish(row_of_y(r), o + WORKGROUP * n, combined(sums[PARTS * n], sums[PARTS * n + PARTS - 1u]));
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn matmul_software(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    let lane = lane_number();
    for (var t = workgroup.x; t < TILES; t += workgroups.x) {
        // Tiles that follow each other share their weights.
        let r = t % ROW_TILES * ROWS_EACH;
        let o = t / ROW_TILES * TILE + at;
        if (!begin_rows(r)) {
            continue;
        }
        var sum_0 = vec4<f32>();
        var sum_1 = vec4<f32>();
        var sum_2 = vec4<f32>();
        var sum_3 = vec4<f32>();
        var sum_4 = vec4<f32>();
        var sum_5 = vec4<f32>();
        var sum_6 = vec4<f32>();
        var sum_7 = vec4<f32>();
        for (var g = 0u; g < GROUPS; g++) {
            var w: Weights;
            w.a = read_weights(0u, o, g);
            if (PRODUCTS > 1u) {
                w.b = read_weights(1u, o, g);
            }
            if (PRODUCTS > 2u) {
                w.c = read_weights(2u, o, g);
                w.d = read_weights(3u, o, g);
            }
            sum_0 += products(w, r, g, lane);
            if (ROWS_EACH > 1u) {
                sum_1 += products(w, r + 1u, g, lane);
            }
            if (ROWS_EACH > 2u) {
                sum_2 += products(w, r + 2u, g, lane);
                sum_3 += products(w, r + 3u, g, lane);
            }
            if (ROWS_EACH > 4u) {
                sum_4 += products(w, r + 4u, g, lane);
                sum_5 += products(w, r + 5u, g, lane);
                sum_6 += products(w, r + 6u, g, lane);
                sum_7 += products(w, r + 7u, g, lane);
            }
        }
        finish_row(r, o, sum_0, at);
        if (ROWS_EACH > 1u) {
            finish_row(r + 1u, o, sum_1, at);
        }
        if (ROWS_EACH > 2u) {
            finish_row(r + 2u, o, sum_2, at);
            finish_row(r + 3u, o, sum_3, at);
        }
        if (ROWS_EACH > 4u) {
            finish_row(r + 4u, o, sum_4, at);
            finish_row(r + 5u, o, sum_5, at);
            finish_row(r + 6u, o, sum_6, at);
            finish_row(r + 7u, o, sum_7, at);
        }
    }
}
