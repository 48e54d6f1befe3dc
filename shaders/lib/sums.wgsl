// SUMS sums over a workgroup at a time. `sums` holds some shares of each, one share's SUMS numbers after the other; in
// the end its first SUMS numbers are the sums. A share of a product is that of 1 to ROWS_AT_ONCE rows.
//
// One of lanes/sums_*.wgsl defines, to be called by all invocations together, each with its place `at`:
//   fn hold(at: u32, n: u32, v: vec4<f32>)     the invocation's share of product n, by row
//   fn add_up(at: u32)                         after the last product; all see the sums

fn put_share(share: u32, n: u32, v: vec4<f32>) {
    let first = share * SUMS + n * ROWS_AT_ONCE;
    sums[first] = v.x;
    if (ROWS_AT_ONCE > 1u) {
        sums[first + 1u] = v.y;
    }
    if (ROWS_AT_ONCE > 2u) {
        sums[first + 2u] = v.z;
        sums[first + 3u] = v.w;
    }
}
