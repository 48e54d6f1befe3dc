// The best of some candidates.
//!const WORKGROUP: u32 = 64

const_assert WORKGROUP > 0u && (WORKGROUP & (WORKGROUP - 1u)) == 0u;

var<workgroup> largest: array<vec2<u32>, WORKGROUP>;

// Of candidates `first` to `last`, that one not included. All invocations call it together and get the result.
fn largest_of(first: u32, last: u32, at: u32) -> vec2<u32> {
    var mine = NOTHING;
    for (var i = first + at; i < last; i += WORKGROUP) {
        let other = candidate(i);
        if (stands_before(other, mine)) {
            mine = other;
        }
    }
    largest[at] = mine;
    workgroupBarrier();
    for (var n = WORKGROUP / 2u; n > 0u; n /= 2u) {
        if (at < n && stands_before(largest[at + n], largest[at])) {
            largest[at] = largest[at + n];
        }
        workgroupBarrier();
    }
    let best = largest[0];
    workgroupBarrier();  // before the next call writes
    return best;
}
