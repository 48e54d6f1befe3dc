// Rows in order of their experts, as sort_experts has put them: those of a tile of TILE_ROWS have one expert. Place p
// is that of row i = sorted[ROWS / TILE_ROWS + p] of y and x[i / SHARED], or of none if that is -1; tile t is of
// expert sorted[t], or of none.
//
// Binding: sorted  i32 [ROWS / TILE_ROWS + ROWS]
//!const SHARED: u32
//!const TILE_ROWS: u32
//!include "lib/experts.wgsl"

const AFTER_ROWS: u32 = 4u;

const_assert ROWS % TILE_ROWS == 0u;

@group(0) @binding(3) var<storage, read> sorted: array<i32>;

fn begin_rows(p: u32) -> bool {
    return begin_expert(sorted[p / TILE_ROWS]);
}

fn row_at(p: u32) -> i32 {
    return sorted[ROWS / TILE_ROWS + min(p, ROWS - 1u)];
}

fn is_row(p: u32) -> bool {
    return p < ROWS && row_at(p) >= 0;
}

fn row_of_x(p: u32) -> u32 {
    return u32(max(row_at(p), 0)) / SHARED;
}

fn row_of_y(p: u32) -> u32 {
    return u32(max(row_at(p), 0));
}
