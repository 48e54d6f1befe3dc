// Draws the next token from the best KEEP of COUNT candidates, after the samplers of a request. One workgroup. What the
// samplers do says wgllm/sampling/samplers.py; here sums are in float32.
//
// Bindings: 0 candidates as candidates/<kind>.wgsl says, 1 to 3 as lib/take_token.wgsl says, and
//   4  request  u32 [16], see wgllm/sampler_words.py: seed (2 words), step, number of samplers, and of each its
//               kind and its parameter (top_k: a number; the others: bits of a float)
//!const COUNT: u32
//!include "lib/sorted_candidates.wgsl"
//!include "lib/take_token.wgsl"
//!include "lib/philox.wgsl"

const TOP_K: u32 = 1u;
const TOP_P: u32 = 2u;
const MIN_P: u32 = 3u;
const TEMPERATURE: u32 = 4u;
const COLDEST: f32 = 1e-6;

@group(0) @binding(4) var<storage, read_write> request: array<u32>;

var<workgroup> logits_left: array<f32, KEEP>;

// How many of the first n come before the running sum of exp(logit - largest) reaches a share of its total, with the
// one that reaches it; `exceeds`: the one that exceeds it.
fn reaching(n: u32, share: f32, exceeds: bool) -> u32 {
    var total = 0.0;
    for (var i = 0u; i < n; i++) {
        total += exp(logits_left[i] - logits_left[0]);
    }
    let aim = share * total;
    var sum = 0.0;
    for (var i = 0u; i < n; i++) {
        sum += exp(logits_left[i] - logits_left[0]);
        if (sum > aim || (sum == aim && !exceeds)) {
            return i + 1u;
        }
    }
    return n;
}

fn chosen() -> u32 {
    var n = 0u;
    while (n < KEEP && best[n].x != NOTHING.x) {
        logits_left[n] = logit_of(best[n]);
        n++;
    }
    for (var link = 0u; link < request[3]; link++) {
        let kind = request[4u + 2u * link];
        let word = request[5u + 2u * link];
        let value = bitcast<f32>(word);
        if (kind == TOP_K) {
            n = min(n, word);
        } else if (kind == TOP_P) {
            n = reaching(n, value, false);
        } else if (kind == MIN_P) {
            let least = logits_left[0] + value;
            while (n > 1u && logits_left[n - 1u] < least) {
                n--;
            }
        } else if (kind == TEMPERATURE) {
            if (value < COLDEST) {
                n = 1u;
            }
            for (var i = 0u; i < n; i++) {
                logits_left[i] /= max(value, COLDEST);
            }
        }
    }
    let words = philox(vec2<u32>(request[0], request[1]), request[2]);
    return reaching(n, f32(words.x >> 8u) * 0x1p-24, true) - 1u;
}

@compute @workgroup_size(WORKGROUP)
fn draw_token(@builtin(local_invocation_index) at: u32) {
    sort_candidates(0u, COUNT, NOTHING, at);
    if (at == 0u) {
        take_token(best[chosen()], best[0]);
        request[2] += 1u;
    }
}
