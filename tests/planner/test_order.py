"""The order in which a map is filled: everything once, coarse lattices first."""

from __future__ import annotations

import pytest
from support.small import GRID

from krypton.ir.geometry import Interval
from krypton.ir.occlusions import Tiling
from krypton.planner.order import level_order, spread, together


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (14, 14), (9, 30), (53, 53)])
def test_every_place_comes_once(shape: tuple[int, int]) -> None:
    assert sorted(level_order(*shape)) == list(range(shape[0] * shape[1]))


def test_coarse_places_come_first_borders_among_them() -> None:
    first = level_order(14, 14)[:9]
    assert {divmod(place, 14) for place in first} == {(row, column) for row in (0, 8, 13) for column in (0, 8, 13)}
    assert sorted(first[:4]) == [0, 13, 182, 195]
    second = level_order(14, 14)[9:25]
    assert {row % 4 for row, _ in (divmod(place, 14) for place in second)} <= {0, 1}


@pytest.mark.parametrize("size", [10, 14, 40])
def test_a_twentieth_leaves_no_large_gap(size: int) -> None:
    count = -(-size * size // 20)
    known = [divmod(place, size) for place in level_order(size, size)[:count]]
    far = max(min(max(abs(row - y), abs(column - x)) for y, x in known) for row in range(size) for column in range(size))
    assert far <= size / 2


def test_tiles_keep_their_boxes() -> None:
    tiling = Tiling(rows=(Interval(0, 1), Interval(1, 3), Interval(3, 4)), columns=(Interval(0, 4),))
    tiles = spread(tiling, GRID)
    assert [tile.indices[0] // 4 for tile in tiles] == [0, 3, 1]
    assert set(tiles) == set(tiling.tiles(GRID))
    assert together(GRID).indices == tuple(level_order(4, 4))
