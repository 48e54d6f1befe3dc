// Row r is multiplied with the matrix of expert ids[r]; it is that of x[r / SHARED], which SHARED experts have chosen
// together. A tile has one row.
//
// Binding: ids  i32 [ROWS]
//!const SHARED: u32
//!include "lib/experts.wgsl"

const AFTER_ROWS: u32 = 4u;

@group(0) @binding(3) var<storage, read> ids: array<i32>;

fn begin_rows(r: u32) -> bool {
    return begin_expert(ids[min(r, ROWS - 1u)]);
}

fn is_row(r: u32) -> bool {
    return r < ROWS;
}

fn row_of_x(r: u32) -> u32 {
    return min(r, ROWS - 1u) / SHARED;
}

fn row_of_y(r: u32) -> u32 {
    return r;
}
