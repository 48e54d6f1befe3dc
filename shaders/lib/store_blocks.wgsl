// The blocks of a cell in `words` words each, and their float16 scales, two to a word, so that one invocation stores
// two blocks.

const_assert HEAD_DIM > 0u && HEAD_DIM % 32u == 0u;

fn store_blocks(cell: u32, at: u32, words: u32) {
    let blocks = HEAD_DIM / 32u;
    let pairs = (blocks + 1u) / 2u;
    for (var i = at; i < pairs; i += WORKGROUP) {
        var d = vec2<f32>();
        for (var b = 2u * i; b < min(2u * i + 2u, blocks); b++) {
            d[b % 2u] = store_block(b, words * (cell * blocks + b));
        }
        state[SCALES + cell * pairs + i] = pack2x16float(d);
    }
}
