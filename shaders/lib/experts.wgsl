// Rows of x that are multiplied with one of many matrices: with that of the expert they were sent to.
//
// w is [PARTS of the whole, EXPERTS, EXPERT_ROWS, INPUTS]: experts FIRST_EXPERT and following, as many as a binding
// holds, or some outputs of one. Outputs EXPERT_ROWS and following are of the second part: gate and up side by side.
// Rows of experts that are not here are left to other dispatches.
//!const EXPERTS: u32
//!const FIRST_EXPERT: u32
//!const EXPERT_ROWS: u32

// Of the rows that are being made, counted from FIRST_EXPERT on.
var<private> expert: u32;

// Whether the expert `id`, if that is one, is here.
fn begin_expert(id: i32) -> bool {
    let here = u32(id) - FIRST_EXPERT;  // below it, or -1: wraps round to a large number
    expert = min(here, EXPERTS - 1u);
    return here < EXPERTS;
}

fn row_of_w(part: u32, o: u32) -> u32 {
    let i = part * OUTPUTS + min(o, OUTPUTS - 1u);
    return (i / EXPERT_ROWS * EXPERTS + expert) * EXPERT_ROWS + i % EXPERT_ROWS;
}

fn group_of_w(part: u32, o: u32, g: u32) -> u32 {
    return row_of_w(part, o) * GROUPS + g;
}
