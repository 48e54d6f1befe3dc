// Which numbers of an array an invocation takes: four at a time, as the memory of a kind of device likes.
// Next to each other for all invocations at once, where graphics cards join the reads of a subgroup; or in a run for
// each invocation, where software goes through memory as a CPU's caches expect it.
//!const RUNS: bool
//!const WORKGROUP: u32

struct Span {
    first: u32,
    end: u32,
    step: u32,  // from one number to the next of the same invocation
}

// Of `count` numbers for invocation `at` of `invocations`; what does not divide by 4 invocations is left out.
fn span(count: u32, at: u32, invocations: u32) -> Span {
    let each = count / (4u * invocations) * 4u;
    if (RUNS) {
        return Span(at * each, (at + 1u) * each, 1u);
    }
    return Span(at, each * invocations, invocations);
}
