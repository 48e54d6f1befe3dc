// Puts the ROWS rows that were sent to experts in order of these, the rows of each from a tile of TILE_ROWS on: what
// rows/sorted reads. The rows of an expert keep their order. One workgroup does all; others have nothing to do.
//
// TILES is at least the tiles that there can be: (ROWS + min(ROWS, EXPERTS) · (TILE_ROWS - 1)) / TILE_ROWS.
//
// Bindings:
//   0  ids     i32 [ROWS]; a row whose number is no expert's is left out
//   1  sorted  i32 [TILES + TILES · TILE_ROWS]: the expert of each tile, -1 beyond the last; the row at each place, -1
//              where a tile has no more
//!const ROWS: u32
//!const EXPERTS: u32
//!const TILE_ROWS: u32
//!const TILES: u32
//!const WORKGROUP: u32 = 128

@group(0) @binding(0) var<storage, read> ids: array<i32>;
@group(0) @binding(1) var<storage, read_write> sorted: array<i32>;

// Rows of each expert, then its first tile.
var<workgroup> places: array<u32, EXPERTS>;
var<workgroup> all_tiles: u32;

fn tiles_of(rows: u32) -> u32 {
    return (rows + TILE_ROWS - 1u) / TILE_ROWS;
}

@compute @workgroup_size(WORKGROUP)
fn sort_experts(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) at: u32,
) {
    if (workgroup.x > 0u) {
        return;
    }
    for (var e = at; e < EXPERTS; e += WORKGROUP) {
        var rows = 0u;
        for (var r = 0u; r < ROWS; r++) {
            rows += select(0u, 1u, ids[r] == i32(e));
        }
        places[e] = rows;
    }
    workgroupBarrier();
    if (at == 0u) {
        var tile = 0u;
        for (var e = 0u; e < EXPERTS; e++) {
            let rows = places[e];
            places[e] = tile;
            tile += tiles_of(rows);
        }
        all_tiles = tile;
    }
    workgroupBarrier();
    for (var e = at; e < EXPERTS; e += WORKGROUP) {
        let first = TILES + places[e] * TILE_ROWS;
        var rows = 0u;
        for (var r = 0u; r < ROWS; r++) {
            if (ids[r] == i32(e)) {
                sorted[first + rows] = i32(r);
                rows++;
            }
        }
        let tiles = tiles_of(rows);
        for (; rows < tiles * TILE_ROWS; rows++) {
            sorted[first + rows] = -1;
        }
        for (var t = 0u; t < tiles; t++) {
            sorted[places[e] + t] = i32(e);
        }
    }
    for (var t = all_tiles + at; t < TILES; t += WORKGROUP) {
        sorted[t] = -1;
    }
}
