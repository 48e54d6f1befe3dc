// The COUNT largest of each row's logits, the largest first, of equals the first: their places, and their weights,
// SCALE times the softmax of all logits, or of the chosen ones where NORMALIZED. Any number of rows, with one workgroup
// each; any number of workgroups does. A NaN comes last.
//
// Bindings:
//   0  logits   f32 [ROWS, EXPERTS]
//   1  ids      i32 [ROWS, COUNT]
//   2  weights  f32 [ROWS, COUNT]
//!const ROWS: u32
//!const EXPERTS: u32
//!const COUNT: u32
//!const NORMALIZED: bool
//!const SCALE: f32 = 1.0
//!include "lib/reduce.wgsl"

const_assert COUNT > 0u && COUNT <= EXPERTS;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> ids: array<i32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;

var<workgroup> keys: array<u32, EXPERTS>;

// Numbers that are in the order of logits.
fn key_of(logit: f32) -> u32 {
    var bits = bitcast<u32>(logit);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {  // compilers may take x != x for false
        return 0u;
    }
    bits = select(bits, 0u, bits == 0x80000000u);  // -0 is 0
    return bits ^ select(0x80000000u, 0xFFFFFFFFu, (bits & 0x80000000u) != 0u);
}

// How many experts come before expert e: its place among them.
fn rank_of(e: u32) -> u32 {
    let mine = keys[e];
    var rank = 0u;
    for (var i = 0u; i < EXPERTS; i++) {
        let other = keys[i];
        rank += select(0u, 1u, other > mine || (other == mine && i < e));
    }
    return rank;
}

@compute @workgroup_size(WORKGROUP)
fn top_experts(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var r = workgroup.x; r < ROWS; r += workgroups.x) {
        let row = r * EXPERTS;
        var largest = logits[row];
        for (var e = at; e < EXPERTS; e += WORKGROUP) {
            keys[e] = key_of(logits[row + e]);
            largest = max(largest, logits[row + e]);
        }
        largest = workgroup_max(largest, at);  // a barrier too: all keys are there
        var sum = 0.0;
        for (var e = at; e < EXPERTS; e += WORKGROUP) {
            let share = exp(logits[row + e] - largest);
            let rank = rank_of(e);
            if (rank < COUNT) {
                ids[r * COUNT + rank] = i32(e);
                weights[r * COUNT + rank] = share;
            }
            if (!NORMALIZED || rank < COUNT) {
                sum += share;
            }
        }
        sum = workgroup_sum(sum, at);
        storageBarrier();  // weights are read by others than those who wrote them
        for (var k = at; k < COUNT; k += WORKGROUP) {
            weights[r * COUNT + k] *= SCALE / sum;
        }
        workgroupBarrier();  // before the next row's keys are written
    }
}
