// y = of each SIZE of the COUNT candidates those of the best KEEP of all that are among them, best first, and NOTHING
// after them. One workgroup for each; any number does.
//
// Bindings:
//   0  candidates  as candidates/<kind>.wgsl says
//   1  y           vec2<u32> [ceil(COUNT / SIZE), KEEP]
//   2  samples     vec2<u32> [KEEP] different candidates: the best KEEP of all are not worse than the worst of these
//!const COUNT: u32
//!const SIZE: u32
//!include "lib/sorted_candidates.wgsl"

@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> samples: array<vec2<u32>>;

// All invocations call it together and get the result.
fn worst_sample(at: u32) -> vec2<u32> {
    var mine = samples[at % KEEP];
    for (var i = at; i < KEEP; i += WORKGROUP) {
        mine = worse(mine, samples[i]);
    }
    best[at] = mine;
    workgroupBarrier();
    for (var n = WORKGROUP / 2u; n > 0u; n /= 2u) {
        if (at < n) {
            best[at] = worse(best[at], best[at + n]);
        }
        workgroupBarrier();
    }
    let worst = best[0];
    workgroupBarrier();  // before the list takes the place
    return worst;
}

fn worse(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(a, b, stands_before(a, b));
}

@compute @workgroup_size(WORKGROUP)
fn best_candidates(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    let floor = worst_sample(at);
    for (var part = workgroup.x; part * SIZE < COUNT; part += workgroups.x) {
        sort_candidates(part * SIZE, min(part * SIZE + SIZE, COUNT), floor, at);
        for (var i = at; i < KEEP; i += WORKGROUP) {
            y[part * KEEP + i] = best[i];
        }
        workgroupBarrier();  // before the next part is read
    }
}
