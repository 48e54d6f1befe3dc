// Which cells a workgroup of WORKGROUP invocations has to look at, the same for all of them. For kernels of
// lib/attention.wgsl.

var<workgroup> least_seen: atomic<u32>;
var<workgroup> end_of_seen: atomic<u32>;
var<workgroup> range_seen: vec2<u32>;

// The least range of the cells first..end of a slot outside of which rows at positions lowest..highest see nothing;
// where they see nothing at all, its end is not above its first. All invocations call it together.
fn seen_cells(slot: u32, first: u32, end: u32, lowest: i32, highest: i32, at: u32) -> vec2<u32> {
    if (at == 0u) {
        atomicStore(&least_seen, end);
        atomicStore(&end_of_seen, first);
    }
    workgroupBarrier();
    var range = vec2<u32>(end, first);
    for (var c = first + at; c < end; c += WORKGROUP) {
        let held = cell_pos[slot * CELLS + c];
        // Any row between them sees it, at the latest the one at its position.
        if (held <= highest && sees(max(lowest, held), held)) {
            range = vec2<u32>(min(range.x, c), c + 1u);
        }
    }
    if (range.x < range.y) {
        atomicMin(&least_seen, range.x);
        atomicMax(&end_of_seen, range.y);
    }
    workgroupBarrier();
    if (at == 0u) {
        range_seen = vec2<u32>(atomicLoad(&least_seen), atomicLoad(&end_of_seen));
    }
    return workgroupUniformLoad(&range_seen);
}
