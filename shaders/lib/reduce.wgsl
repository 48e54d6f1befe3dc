// Reductions over a workgroup of WORKGROUP invocations, a power of two. All invocations call them together, each with
// its place `at` in the workgroup, and all get the result. Workgroup memory is written before it is read: not every
// host clears it.
//!const WORKGROUP: u32 = 64

const_assert WORKGROUP > 0u && (WORKGROUP & (WORKGROUP - 1u)) == 0u;

var<workgroup> partial: array<f32, WORKGROUP>;

fn workgroup_sum(v: f32, at: u32) -> f32 {
    partial[at] = v;
    workgroupBarrier();
    for (var n = WORKGROUP / 2u; n > 0u; n /= 2u) {
        if (at < n) {
            partial[at] += partial[at + n];
        }
        workgroupBarrier();
    }
    let total = partial[0];
    workgroupBarrier();  // before the next reduction writes
    return total;
}

fn workgroup_max(v: f32, at: u32) -> f32 {
    partial[at] = v;
    workgroupBarrier();
    for (var n = WORKGROUP / 2u; n > 0u; n /= 2u) {
        if (at < n) {
            partial[at] = max(partial[at], partial[at + n]);
        }
        workgroupBarrier();
    }
    let largest = partial[0];
    workgroupBarrier();
    return largest;
}
