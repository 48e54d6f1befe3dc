// The best KEEP of some candidates, in workgroup memory. Candidates that are not worse than a `floor` gather in a list;
// when it fills, it is sorted (bitonic: Batcher 1968), its best KEEP stay, and the floor rises to the last of them.
//!const KEEP: u32
//!const WORKGROUP: u32 = 256
//!include "lib/candidates.wgsl"

const ROOM: u32 = 1024u;
const BLOCK: u32 = 512u;  // candidates that are looked at between two looks at the list

const_assert WORKGROUP > 0u && (WORKGROUP & (WORKGROUP - 1u)) == 0u;
const_assert KEEP + BLOCK <= ROOM;

var<workgroup> best: array<vec2<u32>, ROOM>;
var<workgroup> gathered: atomic<u32>;
var<workgroup> in_list: u32;

// Of candidates `first` to `last`, that one not included, and not worse than `floor`, the best KEEP, in order at the
// beginning of `best`; NOTHING follows where there are fewer. All invocations call it together.
fn sort_candidates(first: u32, last: u32, floor: vec2<u32>, at: u32) {
    var least = floor;
    if (at == 0u) {
        atomicStore(&gathered, 0u);
    }
    workgroupBarrier();
    for (var block = first; block < last; block += BLOCK) {
        for (var i = block + at; i < min(block + BLOCK, last); i += WORKGROUP) {
            let pair = candidate(i);
            if (pair.x != NOTHING.x && !stands_before(least, pair)) {
                best[atomicAdd(&gathered, 1u)] = pair;
            }
        }
        let full = list_size(at) > ROOM - BLOCK;
        if (full) {
            sort_list(at);
            least = best[KEEP - 1u];
            if (at == 0u) {
                atomicStore(&gathered, KEEP);
            }
            workgroupBarrier();
        }
    }
    sort_list(at);
}

// The same number for all invocations, which all call it.
fn list_size(at: u32) -> u32 {
    workgroupBarrier();
    if (at == 0u) {
        in_list = atomicLoad(&gathered);
    }
    return workgroupUniformLoad(&in_list);
}

fn sort_list(at: u32) {
    let count = list_size(at);
    var size = KEEP;
    while (size < count) {
        size *= 2u;
    }
    for (var i = count + at; i < size; i += WORKGROUP) {
        best[i] = NOTHING;
    }
    workgroupBarrier();
    for (var run = 2u; run <= size; run *= 2u) {
        for (var step = run / 2u; step > 0u; step /= 2u) {
            for (var t = at; t < size / 2u; t += WORKGROUP) {
                let i = 2u * t - (t & (step - 1u));
                let a = best[i];
                let b = best[i + step];
                if (stands_before(b, a) == ((i & run) == 0u)) {
                    best[i] = b;
                    best[i + step] = a;
                }
            }
            workgroupBarrier();
        }
    }
}
