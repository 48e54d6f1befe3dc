// What the products share: y[r, OUT_FIRST + o] = f(x[r] · w[o]) for rows x and a matrix w of any format.
//
// A kernel is composed with quant/<format>.wgsl, one of rows/, one of inputs/, one of outputs/ and, where its head says
// so, one of lanes/. Bindings are numbered one after the other, with those left out that the files do not declare:
//   weights   packed w [PARTS OUTPUTS, INPUTS]
//   x         f32 [ROWS, INPUTS], its size rounded up to 16 bytes
//   y         f32 [ROWS, OUT_WIDTH]
//   …         those of rows/, which may also say otherwise what w, x and y are
//   norm      f32 [INPUTS]           of inputs/normed
//   bias      f32 [OUTPUTS]          of outputs/biased and biased_added
//   residual  f32 [ROWS, OUT_WIDTH]  of outputs/added and biased_added; not the buffer of y
// A matrix too large for one binding lies in several, some of its rows in each: OUT_WIDTH is then the width of the
// whole product and OUT_FIRST the first output of this part, to which bias belongs.
//
// One of rows/ defines
//   AFTER_ROWS                                   the binding that comes next
//   fn begin_rows(r: u32) -> bool                called for each tile of rows, by its first: is there something to do?
//   fn is_row(r: u32) -> bool                    whether row r, maybe beyond the last, is one
//   fn row_of_x(r: u32) -> u32                   of rows that are none any other
//   fn row_of_w(part: u32, o: u32) -> u32        of outputs beyond the last any other
//   fn group_of_w(part: u32, o: u32, g: u32) -> u32    group g of that row
//   fn row_of_y(r: u32) -> u32
// one of inputs/
//   NORMED, AFTER_INPUTS                         whether rows are normed; the binding that comes next
//   fn input(i: u32) -> vec4<f32>                activations 4i..4i+3 as they are multiplied
//   fn norm_factor(squares: f32) -> f32          what products of a row are multiplied with, by the row's Σ x²
//   fn row_factor(r: u32, at: u32) -> f32        the same; all invocations together, each with its place
// and one of outputs/
//   PARTS                                        how many rows of w make an output: o and, if two, OUTPUTS + o
//   fn combined(a: f32, b: f32) -> f32           their products as one
//   fn finish(r: u32, o: u32, v: f32)            writes it
//!const ROWS: u32
//!const INPUTS: u32
//!const OUTPUTS: u32
//!include "lib/place.wgsl"

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// Groups of a row, where rows are whole groups.
const GROUPS: u32 = INPUTS / 32u;

// Group g of row r of x. What is made of rows and outputs beyond the last nobody sees.
fn group_of_x(r: u32, g: u32) -> u32 {
    return 8u * (row_of_x(r) * GROUPS + g);
}
