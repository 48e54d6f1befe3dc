// A product (lib/product.wgsl) for many rows. One workgroup per tile of TILE rows and TILE outputs: for each group of
// 32 inputs it dequantizes the weights of the tile's outputs once, for all rows of the tile. Each of its
// TILE / 4 · TILE / ROWS_EACH invocations makes ROWS_EACH rows (4 or 8) of four outputs. Any number of workgroups does.
//
// Where tiles are few, inputs are cut into SPLITS parts of whole groups, with a workgroup per tile and part. y is then
// partial sums [SPLITS, ROWS, OUTPUTS], which matmul_reduce adds up and finishes: outputs/plain writes them, OUT_WIDTH
// is OUTPUTS.
//
// TILE is 32 or 64, which takes 8 or 16 KiB of workgroup memory; TILE / ROWS_EACH and INPUTS are multiples of 8 and 32.
// Rows are not normed, and outputs have one part.
//!const TILE: u32 = 32
//!const ROWS_EACH: u32 = 4
//!const SPLITS: u32 = 1
//!include "lib/product.wgsl"

const ACROSS: u32 = TILE / 4u;        // invocations that share a row,
const DOWN: u32 = TILE / ROWS_EACH;   // and an output
const LOADERS: u32 = ACROSS * DOWN - TILE;  // invocations that load rows
const ROW_TILES: u32 = (ROWS + TILE - 1u) / TILE;
const TILES: u32 = ROW_TILES * ((OUTPUTS + TILE - 1u) / TILE);

const_assert INPUTS % 32u == 0u;
const_assert PARTS == 1u && !NORMED;
const_assert SPLITS > 0u && SPLITS <= GROUPS;
const_assert DOWN % 8u == 0u && LOADERS % 8u == 0u && LOADERS > 0u;

// Four inputs, the k-th four of a group, of output n are at TILE k + n, and of row n at TILE k + (n ^ k): invocations
// that write the same row then lie in different banks of memory.
var<workgroup> x_tile: array<vec4<f32>, 8u * TILE>;
var<workgroup> w_tile: array<vec4<f32>, 8u * TILE>;

// What is loaded for rows and outputs beyond the edges is written nowhere.
fn load_weights(first: u32, g: u32, n: u32) {
    let w = dequantized(read_group(group_of_w(0u, first + n, g)));
    w_tile[n] = w.a;
    w_tile[TILE + n] = w.b;
    w_tile[2u * TILE + n] = w.c;
    w_tile[3u * TILE + n] = w.d;
    w_tile[4u * TILE + n] = w.e;
    w_tile[5u * TILE + n] = w.f;
    w_tile[6u * TILE + n] = w.g;
    w_tile[7u * TILE + n] = w.h;
}

// 8 neighbours read one row's 32 inputs.
fn load_rows(first: u32, g: u32, n: u32) {
    let k = n % 8u;
    for (var r = n / 8u; r < TILE; r += LOADERS / 8u) {
        x_tile[TILE * k + (r ^ k)] = input(group_of_x(first + r, g) + k);
    }
}

// Writes v to outputs o, o + ACROSS, ... of row r.
fn write(split: u32, r: u32, o: u32, v: vec4<f32>) {
    if (is_row(r)) {
        for (var j = 0u; j < 4u; j++) {
            if (o + ACROSS * j < OUTPUTS) {
                finish(split * ROWS + row_of_y(r), o + ACROSS * j, v[j]);
            }
        }
    }
}

@compute @workgroup_size(ACROSS * DOWN)
fn matmul(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    // Each invocation makes rows r, r + DOWN, ... of the tile, of outputs o, o + ACROSS, ...
    let r = at / ACROSS;
    let o = at % ACROSS;
    for (var i = workgroup.x; i < SPLITS * TILES; i += workgroups.x) {
        // With constant bounds where nothing is split.
        var t = i;
        var split = 0u;
        var first_group = 0u;
        var end = GROUPS;
        if (SPLITS > 1u) {
            t = i % TILES;
            split = i / TILES;
            first_group = split * GROUPS / SPLITS;
            end = (split + 1u) * GROUPS / SPLITS;
        }
        // Tiles that follow each other share their weights.
        let first_row = t % ROW_TILES * TILE;
        let first_output = t / ROW_TILES * TILE;
        if (!begin_rows(first_row)) {
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
        for (var g = first_group; g < end; g++) {
            if (at < TILE) {
                load_weights(first_output, g, at);
            } else {
                load_rows(first_row, g, at - TILE);
            }
            workgroupBarrier();
            for (var k = 0u; k < 8u; k++) {
                let w = TILE * k + o;
                let columns = mat4x4<f32>(
                    w_tile[w], w_tile[w + ACROSS], w_tile[w + 2u * ACROSS], w_tile[w + 3u * ACROSS],
                );
                let row = TILE * k + (r ^ k);  // DOWN is a multiple of 8, k is less: + DOWN is the same outside of ^
                sum_0 += x_tile[row] * columns;  // four dot products
                sum_1 += x_tile[row + DOWN] * columns;
                sum_2 += x_tile[row + 2u * DOWN] * columns;
                sum_3 += x_tile[row + 3u * DOWN] * columns;
                if (ROWS_EACH > 4u) {
                    sum_4 += x_tile[row + 4u * DOWN] * columns;
                    sum_5 += x_tile[row + 5u * DOWN] * columns;
                    sum_6 += x_tile[row + 6u * DOWN] * columns;
                    sum_7 += x_tile[row + 7u * DOWN] * columns;
                }
            }
            workgroupBarrier();  // before the next group is loaded
        }
        let row = first_row + r;
        write(split, row, first_output + o, sum_0);
        write(split, row + DOWN, first_output + o, sum_1);
        write(split, row + 2u * DOWN, first_output + o, sum_2);
        write(split, row + 3u * DOWN, first_output + o, sum_3);
        if (ROWS_EACH > 4u) {
            write(split, row + 4u * DOWN, first_output + o, sum_4);
            write(split, row + 5u * DOWN, first_output + o, sum_5);
            write(split, row + 6u * DOWN, first_output + o, sum_6);
            write(split, row + 7u * DOWN, first_output + o, sum_7);
        }
    }
}
