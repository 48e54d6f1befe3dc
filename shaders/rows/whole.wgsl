// Every row of x is multiplied with all of w.

const AFTER_ROWS: u32 = 3u;

fn begin_rows(r: u32) -> bool {
    return true;
}

fn is_row(r: u32) -> bool {
    return r < ROWS;
}

fn row_of_x(r: u32) -> u32 {
    return min(r, ROWS - 1u);
}

fn row_of_w(part: u32, o: u32) -> u32 {
    return part * OUTPUTS + min(o, OUTPUTS - 1u);
}

fn group_of_w(part: u32, o: u32, g: u32) -> u32 {
    return row_of_w(part, o) * GROUPS + g;
}

fn row_of_y(r: u32) -> u32 {
    return r;
}
