// Where in y [rows, OUT_WIDTH] a product's outputs lie: from column OUT_FIRST on (lib/product.wgsl).
//!const OUT_WIDTH: u32
//!const OUT_FIRST: u32 = 0

fn place(r: u32, o: u32) -> u32 {
    return r * OUT_WIDTH + OUT_FIRST + o;
}
