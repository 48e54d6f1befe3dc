// Outputs that one row of w makes.
const PARTS: u32 = 1u;

fn combined(a: f32, b: f32) -> f32 {
    return a;
}
