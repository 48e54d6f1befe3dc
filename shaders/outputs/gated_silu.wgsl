// y = silu(gate) · up.
//!include "lib/two_parts.wgsl"

fn combined(gate: f32, up: f32) -> f32 {
    return safe_silu(gate) * up;
}
