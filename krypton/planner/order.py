"""The order in which a map is filled: coarsely all over first, so that what is known at any time is spread over the image."""

from __future__ import annotations

from krypton.ir.occlusions import Grid, Lattice, Occlusions, OcclusionTile, Tiling, tile_around

_ALWAYS = 64


def evenly(count: int, step: int) -> tuple[int, ...]:
    """Every so manyth place from the first on, and the last one."""
    return tuple(sorted({*range(0, count, step), count - 1}))


def level_order(rows: int, columns: int) -> list[int]:
    """The places of a lattice, row by row, in another order: those of a coarse lattice first, then level by level between.

    Each level has half the step of the one before; the last row and column belong to the first.
    """
    down, across = _levels(rows), _levels(columns)
    levels = [min(row, column) for row in down for column in across]
    return sorted(range(len(levels)), key=lambda place: -levels[place])


def spread(tiling: Tiling, occlusions: Occlusions, lattice: Lattice | None = None) -> list[OcclusionTile]:
    """The tiles of a tiling in that order; groups of masks as they are."""
    tiles = tiling.tiles(occlusions, lattice)
    return tiles if tiling.groups else [tiles[place] for place in level_order(len(tiling.rows), len(tiling.columns))]


def together(occlusions: Occlusions) -> OcclusionTile:
    """All occlusions as one tile, those of a grid in that order: for a model that is asked about whole images."""
    order = level_order(*occlusions.shape) if isinstance(occlusions, Grid) else range(occlusions.count)
    return tile_around(order, occlusions.rectangles().reshape(-1, 4))


def _levels(count: int) -> list[int]:
    """How often each place can be halved; the first and the last one as often as one likes."""
    return [_ALWAYS if place in (0, count - 1) else (place & -place).bit_length() for place in range(count)]
