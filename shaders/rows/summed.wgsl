// Row r of x has the inputs of CHOSEN experts side by side, those of ids[r]; its outputs are the sum of what these
// make. Goes with inputs/weighted, which multiplies each expert's inputs with its weight. A tile has one row.
//
// w is [EXPERTS, OUTPUTS, INPUTS / CHOSEN]: all experts, whose inputs are whole groups. Bindings:
//   ids      i32 [ROWS, CHOSEN]
//   weights  f32 [ROWS, CHOSEN], `shares` here
//!const CHOSEN: u32
//!const EXPERTS: u32

const AFTER_ROWS: u32 = 5u;
const EACH: u32 = GROUPS / CHOSEN;  // groups of an expert

const_assert GROUPS % CHOSEN == 0u;

@group(0) @binding(3) var<storage, read> ids: array<i32>;
@group(0) @binding(4) var<storage, read> shares: array<f32>;

var<private> row: u32;

fn begin_rows(r: u32) -> bool {
    row = min(r, ROWS - 1u);
    return true;
}

fn is_row(r: u32) -> bool {
    return r < ROWS;
}

fn row_of_x(r: u32) -> u32 {
    return min(r, ROWS - 1u);
}

// In the matrix of the expert that takes group g.
fn row_of_expert(o: u32, g: u32) -> u32 {
    let expert = min(u32(ids[row * CHOSEN + g / EACH]), EXPERTS - 1u);
    return expert * OUTPUTS + min(o, OUTPUTS - 1u);
}

fn row_of_w(part: u32, o: u32) -> u32 {
    return row_of_expert(o, 0u);
}

fn group_of_w(part: u32, o: u32, g: u32) -> u32 {
    return row_of_expert(o, g) * EACH + g % EACH;
}

fn row_of_y(r: u32) -> u32 {
    return r;
}
