// What the SPLITS partial sums of matmul are together, finished as the outputs of a product are (lib/product.wgsl).
// One invocation per number of y; any number of workgroups does.
//
// Composed with one of outputs/, of one part. Bindings are numbered one after the other, with those left out that the
// files do not declare:
//   partial_sums  f32 [SPLITS, ROWS, OUTPUTS]
//   y             f32 [ROWS, OUT_WIDTH]
//   bias, residual
//!const ROWS: u32
//!const OUTPUTS: u32
//!const SPLITS: u32
//!const WORKGROUP: u32 = 64
//!include "lib/place.wgsl"

@group(0) @binding(0) var<storage, read> partial_sums: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

const AFTER_INPUTS: u32 = 2u;
const NUMBERS: u32 = ROWS * OUTPUTS;

const_assert PARTS == 1u;

@compute @workgroup_size(WORKGROUP)
fn matmul_reduce(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < NUMBERS; i += groups.x * WORKGROUP) {
        var sum = 0.0;
        for (var s = 0u; s < SPLITS; s++) {
            sum += partial_sums[s * NUMBERS + i];
        }
        finish(i / OUTPUTS, i % OUTPUTS, sum);
    }
}
