// Whether a row at position `pos` sees the cell that holds position `held` (-1: none). WINDOW 0: there is none.
//!const WINDOW: i32 = 0

fn sees(pos: i32, held: i32) -> bool {
    return held >= 0 && held <= pos && (WINDOW == 0 || pos - held < WINDOW);
}
