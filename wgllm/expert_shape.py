"""How the products of a mixture of experts are computed: in tiles of how many rows, by which kernel. Plain arithmetic.

Each row of a step is multiplied with the matrices of the experts that it has chosen. Of few rows each meets its
matrices alone, and nobody else's are read. Where experts are chosen by several rows, rows are sorted by expert first
and make tiles, so that a matrix is read once for all rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wgllm.product_shape import FEW_ROWS, LARGE_TILE, SMALL_TILE, Choice, Product, Target, default

# A card's tiles are worth it where an expert is chosen by so many rows on average, ...
_ROWS_FOR_TILES = 2
# ... and larger ones where it is by so many.
_ROWS_FOR_LARGE_TILES = 64


@dataclass(frozen=True)
class Chosen:
    """Rows of a step that choose among experts."""

    rows: int
    count: int
    """Experts of a row."""
    experts: int
    """In all."""

    @property
    def pairs(self) -> int:
        """Of a row and one of its experts."""
        return self.rows * self.count

    @property
    def most_read(self) -> int:
        """How many experts may be chosen by any row."""
        return min(self.experts, self.pairs)

    def tiles(self, rows: int) -> int:
        """The most tiles of ``rows`` rows: of each expert that is chosen the last one need not be full."""
        return (self.pairs + self.most_read * (rows - 1)) // rows


def tile_rows(chosen: Chosen, inputs: int, target: Target) -> int:
    """Rows of a tile; 1 where pairs are not sorted."""
    if chosen.rows == 1 or inputs % 32:
        return 1
    if target.software:
        wanted = -(-chosen.pairs // chosen.experts)
        most = 8 if target.subgroup >= 4 else 4
        return min(1 << (wanted - 1).bit_length(), most)
    if chosen.rows <= FEW_ROWS or chosen.pairs < _ROWS_FOR_TILES * chosen.experts:
        return 1
    large = chosen.pairs >= _ROWS_FOR_LARGE_TILES * chosen.experts
    large = large and target.limits.workgroup_memory >= 16384
    return (LARGE_TILE if large else SMALL_TILE).outputs


def choose(product: Product, tile: int, target: Target) -> Choice:
    """The kernel of a product whose rows, all together, are in tiles of ``tile``."""
    if not target.software and tile > 1:
        return LARGE_TILE if tile == LARGE_TILE.outputs else SMALL_TILE
    # As one tile would be chosen, had it the outputs of all.
    tiles = -(-product.rows // tile)
    return default(replace(product, rows=tile, outputs=tiles * product.outputs, before="plain"), target)


def makes_tiles(tile: int, target: Target) -> bool:
    """Whether the kernel for such tiles is one that has no gate."""
    return tile > 1 and not target.software
