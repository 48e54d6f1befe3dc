// What the SPLITS results of attention_decode or attention_prefill are together (lib/attention.wgsl). One invocation
// per four numbers; any number of workgroups does.
//
// Bindings:
//   0  splits  f32 [ROWS, HEADS, SPLITS, HEAD_DIM + 4]: values, largest score, sum of weights, 0, 0
//   1  y       f32 [ROWS, HEADS, HEAD_DIM]
//!const ROWS: u32
//!const HEADS: u32
//!const HEAD_DIM: u32
//!const SPLITS: u32
//!const WORKGROUP: u32 = 64
//!include "lib/hidden.wgsl"

const_assert HEAD_DIM % 4u == 0u;

@group(0) @binding(0) var<storage, read> splits: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

const QUADS: u32 = HEAD_DIM / 4u;

@compute @workgroup_size(WORKGROUP)
fn attention_reduce(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * HEADS * QUADS; i += groups.x * WORKGROUP) {
        let first = i / QUADS * SPLITS;
        var largest = HIDDEN;
        for (var s = first; s < first + SPLITS; s++) {
            largest = max(largest, splits[s * (QUADS + 1u) + QUADS].x);
        }
        var sum = 0.0;
        var values = vec4<f32>();
        for (var s = first; s < first + SPLITS; s++) {
            let of_split = splits[s * (QUADS + 1u) + QUADS];
            let factor = exp(of_split.x - largest);  // where a split sees nothing its sum and values are 0
            sum += factor * of_split.y;
            values += factor * splits[s * (QUADS + 1u) + i % QUADS];
        }
        y[i] = values / max(sum, 1e-30);
    }
}
