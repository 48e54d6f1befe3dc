// Takes the best of COUNT candidates as the next token. One workgroup.
//
// Bindings: 0 candidates as candidates/<kind>.wgsl says, the others as lib/take_token.wgsl says.
//!const COUNT: u32
//!include "lib/candidates.wgsl"
//!include "lib/largest_candidate.wgsl"
//!include "lib/take_token.wgsl"

@compute @workgroup_size(WORKGROUP)
fn greedy_token(@builtin(local_invocation_index) at: u32) {
    let best = largest_of(0u, COUNT, at);
    if (at == 0u) {
        take_token(best, best);
    }
}
