// y[r] = the place of the largest number of x[r], the first of equals. One workgroup per row; any number does.
//
// Bindings:
//   0  x  f32 [ROWS, WIDTH]
//   1  y  i32 [ROWS]
//!const ROWS: u32
//!const WIDTH: u32
//!const WORKGROUP: u32 = 64

const_assert WORKGROUP > 0u && (WORKGROUP & (WORKGROUP - 1u)) == 0u;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<i32>;

var<workgroup> best: array<u32, WORKGROUP>;  // of each invocation, a place in the row

// The better of two places in the row that begins at `row`; WIDTH is no place.
fn better(row: u32, i: u32, j: u32) -> u32 {
    if (i == WIDTH || j == WIDTH) {
        return min(i, j);
    }
    let a = x[row + i];
    let b = x[row + j];
    return select(j, i, a > b || (a == b && i < j));
}

@compute @workgroup_size(WORKGROUP)
fn argmax(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        let row = r * WIDTH;
        var mine = WIDTH;
        for (var i = at; i < WIDTH; i += WORKGROUP) {
            mine = better(row, mine, i);
        }
        best[at] = mine;
        workgroupBarrier();
        for (var n = WORKGROUP / 2u; n > 0u; n /= 2u) {
            if (at < n) {
                best[at] = better(row, best[at], best[at + n]);
            }
            workgroupBarrier();
        }
        if (at == 0u) {
            y[r] = i32(best[0]);
        }
        workgroupBarrier();  // before the next row writes
    }
}
