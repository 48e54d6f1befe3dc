// Turns pair i of the first DIM numbers of each head by the angle of its row's position and of i; the others stay.
// Pairs are neighbours (2i, 2i + 1) or, unless INTERLEAVED, half of DIM apart (i, i + DIM / 2). One invocation per
// number.
//
// Bindings:
//   0  x      f32 [ROWS, HEADS, HEAD_DIM]
//   1  pos    i32 [ROWS]; of rows without a position (below 0) y means nothing
//   2  turns  f32 [positions, DIM / 2, 2], cos and sin; made by the host, since WGSL's are poor for large angles
//   3  y      f32 [ROWS, HEADS, HEAD_DIM]
// Any number of workgroups does.
//!const ROWS: u32
//!const HEADS: u32
//!const HEAD_DIM: u32
//!const DIM: u32
//!const INTERLEAVED: bool
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> pos: array<i32>;
@group(0) @binding(2) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const HALF: u32 = DIM / 2u;

@compute @workgroup_size(WORKGROUP)
fn rope(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * HEADS * HEAD_DIM; i += groups.x * WORKGROUP) {
        let d = i % HEAD_DIM;
        if (d >= DIM) {
            y[i] = x[i];
            continue;
        }
        var pair = d % HALF;
        var second = d >= HALF;
        var distance = HALF;
        if (INTERLEAVED) {
            pair = d / 2u;
            second = d % 2u == 1u;
            distance = 1u;
        }
        let p = u32(max(pos[i / (HEADS * HEAD_DIM)], 0));
        let turn = turns[p * HALF + pair];
        if (second) {
            y[i] = x[i] * turn.x + x[i - distance] * turn.y;
        } else {
            y[i] = x[i] * turn.x - x[i + distance] * turn.y;
        }
    }
}
