// Sums through workgroup memory alone.
//!include "lib/sums.wgsl"

var<workgroup> sums: array<f32, WORKGROUP * SUMS>;

fn hold(at: u32, n: u32, v: vec4<f32>) {
    put_share(at, n, v);
}

fn add_up(at: u32) {
    workgroupBarrier();
    for (var left = WORKGROUP / 2u; left > 0u; left /= 2u) {
        for (var i = at; i < left * SUMS; i += WORKGROUP) {
            sums[i] += sums[i + left * SUMS];
        }
        workgroupBarrier();
    }
}
