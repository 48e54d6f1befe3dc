// Stores a cell of a KV state of type f16, two numbers a word. kv_store/f32.wgsl says what a kernel defines.

const_assert HEAD_DIM % 2u == 0u;

fn store_cell(cell: u32, at: u32) {
    for (var i = at; i < HEAD_DIM / 2u; i += WORKGROUP) {
        state[cell * (HEAD_DIM / 2u) + i] = pack2x16float(vec2<f32>(number(2u * i), number(2u * i + 1u)));
    }
}
