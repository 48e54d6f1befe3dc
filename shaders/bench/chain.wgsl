// As little as a dispatch can do, and still the next one has to wait for it. One workgroup.
//
// Bindings:
//   0  x  u32 [64]

@group(0) @binding(0) var<storage, read_write> x: array<u32>;

@compute @workgroup_size(64)
fn chain(@builtin(local_invocation_index) at: u32) {
    x[at] += 1u;
}
