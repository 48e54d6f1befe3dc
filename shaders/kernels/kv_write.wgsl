// state[slot[r], :, pos[r] mod CELLS] = x[r], an entry point for each type that a state can have.
//
// Bindings:
//   0  x      f32 [ROWS, KV_HEADS, HEAD_DIM]
//   1  pos    i32 [ROWS]; rows without a position (below 0) are not written
//   2  slot   i32 [ROWS]
//   3  state  u32 words of [slots, KV_HEADS, CELLS, HEAD_DIM]:
//             f32         the numbers
//             f16         two numbers a word; HEAD_DIM is even
// Any number of workgroups does.
//!const ROWS: u32
//!const KV_HEADS: u32
//!const HEAD_DIM: u32
//!const CELLS: u32
//!const WORKGROUP: u32 = 64

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> pos: array<i32>;
@group(0) @binding(2) var<storage, read> slot: array<i32>;
@group(0) @binding(3) var<storage, read_write> state: array<u32>;

// Where number i of x goes, counted in numbers. Its row has a position.
fn place_of(i: u32) -> u32 {
    let r = i / (KV_HEADS * HEAD_DIM);
    let h = (i / HEAD_DIM) % KV_HEADS;
    let cell = u32(pos[r]) % CELLS;
    return ((u32(slot[r]) * KV_HEADS + h) * CELLS + cell) * HEAD_DIM + i % HEAD_DIM;
}

fn is_written(i: u32) -> bool {
    return pos[i / (KV_HEADS * HEAD_DIM)] >= 0;
}

@compute @workgroup_size(WORKGROUP)
fn kv_write_f32(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < ROWS * KV_HEADS * HEAD_DIM; i += groups.x * WORKGROUP) {
        if (is_written(i)) {
            state[place_of(i)] = bitcast<u32>(x[i]);
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn kv_write_f16(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = 2u * id.x; i < ROWS * KV_HEADS * HEAD_DIM; i += 2u * groups.x * WORKGROUP) {
        if (is_written(i)) {
            state[place_of(i) / 2u] = pack2x16float(vec2<f32>(x[i], x[i + 1u]));
        }
    }
}
