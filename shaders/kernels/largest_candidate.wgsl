// y = of each SIZE of the COUNT candidates the best. One workgroup for each; any number does.
//
// Bindings:
//   0  candidates  as candidates/<kind>.wgsl says
//   1  y           vec2<u32> [ceil(COUNT / SIZE)]
//!const COUNT: u32
//!const SIZE: u32
//!include "lib/candidates.wgsl"
//!include "lib/largest_candidate.wgsl"

@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;

@compute @workgroup_size(WORKGROUP)
fn largest_candidate(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    for (var part = workgroup.x; part * SIZE < COUNT; part += workgroups.x) {
        let best = largest_of(part * SIZE, min(part * SIZE + SIZE, COUNT), at);
        if (at == 0u) {
            y[part] = best;
        }
    }
}
