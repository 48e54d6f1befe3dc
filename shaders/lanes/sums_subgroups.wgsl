// Sums within each subgroup first, of whatever size; one share per subgroup then goes through workgroup memory. The
// subgroups are taken to be neighbours in order of local_invocation_index, of 4 invocations or more.
//!include "lib/sums.wgsl"

var<workgroup> sums: array<f32, WORKGROUP / 4u * SUMS>;

fn hold(at: u32, n: u32, v: vec4<f32>) {
    let total = subgroupAdd(v);
    let size = subgroupAdd(1u);
    if (subgroupExclusiveAdd(1u) == 0u) {  // the first of them; naga knows no subgroupElect
        put_share(at / size, n, total);
    }
}

fn add_up(at: u32) {
    let shares = WORKGROUP / subgroupAdd(1u);
    workgroupBarrier();
    if (at < SUMS) {
        var total = 0.0;
        for (var j = 0u; j < shares; j++) {
            total += sums[j * SUMS + at];
        }
        sums[at] = total;  // which only this invocation reads until all are there
    }
    workgroupBarrier();
}
