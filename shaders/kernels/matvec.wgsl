// A product (lib/product.wgsl) for few rows and any width. One invocation per number of y; any number of workgroups
// does. INPUTS is a multiple of 32 but for formats of single numbers with inputs/plain.
//!const WORKGROUP: u32 = 64
//!include "lib/product.wgsl"

const STRIPS: u32 = (OUTPUTS + WORKGROUP - 1u) / WORKGROUP;

fn product(r: u32, part: u32, o: u32) -> f32 {
    if (INPUTS % 32u != 0u) {
        return product_of_any_width(r, part, o);
    }
    var sum = 0.0;
    for (var g = 0u; g < GROUPS; g++) {
        sum += dot_group(group_of_w(part, o, g), group_of_x(r, g));
    }
    return sum;
}

// For formats of single numbers, whose rows may begin and end within a group.
fn product_of_any_width(r: u32, part: u32, o: u32) -> f32 {
    let first = row_of_w(part, o) * INPUTS;
    var sum = 0.0;
    for (var g = first / 32u; 32u * g < first + INPUTS; g++) {
        dequantize_group(g);
        for (var j = 0u; j < 32u; j++) {
            let k = 32u * g + j - first;  // before the row: wraps round to a large number
            if (k < INPUTS) {
                let at = row_of_x(r) * INPUTS + k;
                sum += group[j] * input(at / 4u)[at % 4u];
            }
        }
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn matvec(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var t = workgroup.x; t < ROWS * STRIPS; t += workgroups.x) {
        // Strips that follow each other share their weights.
        let r = t % ROWS;
        if (!begin_rows(r)) {
            continue;
        }
        let o = t / ROWS * WORKGROUP + at;
        let factor = row_factor(r, at);
        if (o < OUTPUTS && is_row(r)) {
            let a = product(r, 0u, o) * factor;
            var b = 0.0;
            if (PARTS == 2u) {
                b = product(r, 1u, o) * factor;
            }
            finish(row_of_y(r), o, combined(a, b));
        }
    }
}
