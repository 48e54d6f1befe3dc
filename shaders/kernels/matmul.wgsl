// y[r, OUT_FIRST + o] = x[r] · w[o], for many rows x and a matrix w of any format. One workgroup per tile of y: for
// each group of 32 inputs it dequantizes the weights of the tile's outputs once, for all rows of the tile.
//
// Composed with quant/<format>.wgsl. Bindings:
//   0  weights  packed w [OUTPUTS, INPUTS]
//   1  x        f32 [ROWS, INPUTS]
//   2  y        f32 [ROWS, OUT_WIDTH]
// INPUTS is a multiple of 32. A matrix too large for one binding lies in several, some of its rows in each: OUT_WIDTH
// is then the width of the whole product and OUT_FIRST the first output of this part. Any number of workgroups does.
//!const ROWS: u32
//!const INPUTS: u32
//!const OUTPUTS: u32
//!const OUT_WIDTH: u32
//!const OUT_FIRST: u32 = 0

const_assert INPUTS % 32u == 0u;

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const TILE: u32 = 32u;  // rows, and outputs
const GROUPS: u32 = INPUTS / 32u;
const ROW_TILES: u32 = (ROWS + TILE - 1u) / TILE;
const TILES: u32 = ROW_TILES * ((OUTPUTS + TILE - 1u) / TILE);

// Four inputs of row (or output) n of the tile are at PITCH (their number / 4) + n. One more than the tile, so that
// invocations that write the same row lie in different banks of memory.
const PITCH: u32 = TILE + 1u;
var<workgroup> x_tile: array<vec4<f32>, 8u * PITCH>;
var<workgroup> w_tile: array<vec4<f32>, 8u * PITCH>;

fn input(i: u32) -> vec4<f32> {
    return x[i];
}

// Beyond the edges there are zeros, so that the products below need no conditions.
fn load_weights(first: u32, g: u32, n: u32) {
    let inside = first + n < OUTPUTS;
    if (inside) {
        dequantize_group((first + n) * GROUPS + g);
    }
    for (var k = 0u; k < 8u; k++) {
        let four = vec4<f32>(group[4u * k], group[4u * k + 1u], group[4u * k + 2u], group[4u * k + 3u]);
        w_tile[PITCH * k + n] = select(vec4<f32>(), four, inside);
    }
}

// 32 invocations, each at `n`, load four rows at a time: 8 neighbours read one row's 32 inputs.
fn load_rows(first: u32, g: u32, n: u32) {
    let k = n % 8u;
    for (var r = n / 8u; r < TILE; r += 4u) {
        var four = vec4<f32>();
        if (first + r < ROWS) {
            four = input(8u * ((first + r) * GROUPS + g) + k);
        }
        x_tile[PITCH * k + r] = four;
    }
}

// Writes v to outputs o, o + 8, o + 16 and o + 24 of row r.
fn write(r: u32, o: u32, v: vec4<f32>) {
    if (r < ROWS) {
        for (var j = 0u; j < 4u; j++) {
            if (o + 8u * j < OUTPUTS) {
                y[r * OUT_WIDTH + OUT_FIRST + o + 8u * j] = v[j];
            }
        }
    }
}

@compute @workgroup_size(64)
fn matmul(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    // Each invocation makes 4 x 4 numbers: rows r, r + 8, r + 16, r + 24 of the tile, outputs o, o + 8, ...
    let r = at / 8u;
    let o = at % 8u;
    for (var t = workgroup.x; t < TILES; t += workgroups.x) {
        // Tiles that follow each other share their weights.
        let first_row = t % ROW_TILES * TILE;
        let first_output = t / ROW_TILES * TILE;
        var sum_0 = vec4<f32>();
        var sum_1 = vec4<f32>();
        var sum_2 = vec4<f32>();
        var sum_3 = vec4<f32>();
        for (var g = 0u; g < GROUPS; g++) {
            if (at < 32u) {
                load_weights(first_output, g, at);
            } else {
                load_rows(first_row, g, at - 32u);
            }
            workgroupBarrier();
            for (var k = 0u; k < 8u; k++) {
                let w = PITCH * k + o;
                let columns = mat4x4<f32>(w_tile[w], w_tile[w + 8u], w_tile[w + 16u], w_tile[w + 24u]);
                let row = PITCH * k + r;
                sum_0 += x_tile[row] * columns;  // four dot products
                sum_1 += x_tile[row + 8u] * columns;
                sum_2 += x_tile[row + 16u] * columns;
                sum_3 += x_tile[row + 24u] * columns;
            }
            workgroupBarrier();  // before the next group is loaded
        }
        let row = first_row + r;
        write(row, first_output + o, sum_0);
        write(row + 8u, first_output + o, sum_1);
        write(row + 16u, first_output + o, sum_2);
        write(row + 24u, first_output + o, sum_3);
    }
}
