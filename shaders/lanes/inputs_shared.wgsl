// Activations that a whole subgroup needs are read once: LANES neighbours, 4 or 8 of a subgroup that has no fewer, read
// a part each and hand it to all.
//!const LANES: u32

const_assert LANES == 4u || LANES == 8u;

fn lane_number() -> u32 {
    return subgroupExclusiveAdd(1u) % LANES;
}

// Activations 4 first..4 first + 31; all invocations ask for the same, each with its lane_number().
fn inputs_for_all(first: u32, lane: u32) -> Quads {
    let mine = input(first + lane);
    var rest = mine;
    if (LANES == 4u) {
        rest = input(first + 4u + lane);
    }
    return Quads(
        subgroupBroadcast(mine, 0u), subgroupBroadcast(mine, 1u),
        subgroupBroadcast(mine, 2u), subgroupBroadcast(mine, 3u),
        subgroupBroadcast(rest, 4u % LANES), subgroupBroadcast(rest, 4u % LANES + 1u),
        subgroupBroadcast(rest, 4u % LANES + 2u), subgroupBroadcast(rest, 4u % LANES + 3u),
    );
}
