// A product (lib/product.wgsl) for few rows, on devices with wide memory. One workgroup per tile of ROWS_AT_ONCE rows
// (1, 2, 4) and OUTPUTS_AT_ONCE outputs (1, 2, 4, 8; half as many at most where an output has two parts): neighbours
// read neighbouring groups of a row of w, and their shares are added up. Any number of workgroups does.
//
// Composed with one of lanes/sums_*.wgsl too. WORKGROUP is a power of two, INPUTS a multiple of 32.
//!const WORKGROUP: u32 = 64
//!const ROWS_AT_ONCE: u32 = 1
//!const OUTPUTS_AT_ONCE: u32 = 4
//!include "lib/product.wgsl"

const_assert INPUTS % 32u == 0u;
const_assert WORKGROUP > 0u && (WORKGROUP & (WORKGROUP - 1u)) == 0u;

const ROW_TILES: u32 = (ROWS + ROWS_AT_ONCE - 1u) / ROWS_AT_ONCE;
const TILES: u32 = ROW_TILES * ((OUTPUTS + OUTPUTS_AT_ONCE - 1u) / OUTPUTS_AT_ONCE);

// Products of a tile: those of output n are from PARTS n on, and the squares of normed rows follow.
const PRODUCTS: u32 = PARTS * OUTPUTS_AT_ONCE;
const SUMS: u32 = ROWS_AT_ONCE * (PRODUCTS + select(0u, 1u, NORMED));

const_assert PRODUCTS <= 8u;
const_assert SUMS <= WORKGROUP;

// A group of up to four rows of x.
struct Rows {
    a: Quads,
    b: Quads,
    c: Quads,
    d: Quads,
}

fn read_rows(r: u32, g: u32) -> Rows {
    var x: Rows;
    x.a = read_inputs(group_of_x(r, g));
    if (ROWS_AT_ONCE > 1u) {
        x.b = read_inputs(group_of_x(r + 1u, g));
    }
    if (ROWS_AT_ONCE > 2u) {
        x.c = read_inputs(group_of_x(r + 2u, g));
        x.d = read_inputs(group_of_x(r + 3u, g));
    }
    return x;
}

fn share(n: u32, o: u32, g: u32, x: Rows) -> vec4<f32> {
    let w = read_group(group_of_w(n % PARTS, o + n / PARTS, g));
    var v = vec4<f32>(dot_read(w, x.a), 0.0, 0.0, 0.0);
    if (ROWS_AT_ONCE > 1u) {
        v.y = dot_read(w, x.b);
    }
    if (ROWS_AT_ONCE > 2u) {
        v.z = dot_read(w, x.c);
        v.w = dot_read(w, x.d);
    }
    return v;
}

fn squares(i: u32) -> f32 {
    var sum = 0.0;
    for (var j = 0u; j < 8u; j++) {
        sum += dot(x[i + j], x[i + j]);
    }
    return sum;
}

fn squares_of_rows(r: u32, g: u32) -> vec4<f32> {
    var v = vec4<f32>(squares(group_of_x(r, g)), 0.0, 0.0, 0.0);
    if (ROWS_AT_ONCE > 1u) {
        v.y = squares(group_of_x(r + 1u, g));
    }
    if (ROWS_AT_ONCE > 2u) {
        v.z = squares(group_of_x(r + 2u, g));
        v.w = squares(group_of_x(r + 3u, g));
    }
    return v;
}

@compute @workgroup_size(WORKGROUP)
fn matvec_wide(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var t = workgroup.x; t < TILES; t += workgroups.x) {
        // Tiles that follow each other share their weights.
        let r = t % ROW_TILES * ROWS_AT_ONCE;
        let o = t / ROW_TILES * OUTPUTS_AT_ONCE;
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
        var sum_squares = vec4<f32>();
        for (var g = at; g < GROUPS; g += WORKGROUP) {
            let x = read_rows(r, g);
            sum_0 += share(0u, o, g, x);
            if (PRODUCTS > 1u) {
                sum_1 += share(1u, o, g, x);
            }
            if (PRODUCTS > 2u) {
                sum_2 += share(2u, o, g, x);
                sum_3 += share(3u, o, g, x);
            }
            if (PRODUCTS > 4u) {
                sum_4 += share(4u, o, g, x);
                sum_5 += share(5u, o, g, x);
                sum_6 += share(6u, o, g, x);
                sum_7 += share(7u, o, g, x);
            }
            if (NORMED) {
                sum_squares += squares_of_rows(r, g);
            }
        }
        hold(at, 0u, sum_0);
        if (PRODUCTS > 1u) {
            hold(at, 1u, sum_1);
        }
        if (PRODUCTS > 2u) {
            hold(at, 2u, sum_2);
            hold(at, 3u, sum_3);
        }
        if (PRODUCTS > 4u) {
            hold(at, 4u, sum_4);
            hold(at, 5u, sum_5);
            hold(at, 6u, sum_6);
            hold(at, 7u, sum_7);
        }
        if (NORMED) {
            hold(at, PRODUCTS, sum_squares);
        }
        add_up(at);
        let row = at % ROWS_AT_ONCE;
        let n = at / ROWS_AT_ONCE;
        if (n < OUTPUTS_AT_ONCE && is_row(r + row) && o + n < OUTPUTS) {
            var factor = 1.0;
            if (NORMED) {
                factor = norm_factor(sums[PRODUCTS * ROWS_AT_ONCE + row]);
            }
            let first = PARTS * n * ROWS_AT_ONCE + row;
            let a = sums[first] * factor;
            var b = 0.0;
            if (PARTS == 2u) {
                b = sums[first + ROWS_AT_ONCE] * factor;
            }
            finish(row_of_y(r + row), o + n, combined(a, b));
        }
        workgroupBarrier();  // before the next tile's shares are written
    }
}
