"""Grids, masks and tilings against plain loops over positions."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from support.random_nets import mask_sets

from krypton.errors import BindError
from krypton.ir.geometry import Interval
from krypton.ir.occlusions import Grid, Masks, Tiling

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=200)
@given(SIZES, SIZES, SIZES, st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 12), st.integers(1, 12)))
def test_a_grid_holds_every_step_that_fits(image, patch, stride, corner) -> None:
    assume(patch[0] <= image[0] and patch[1] <= image[1])
    expected = [
        (y, x)
        for y in range(0, image[0], stride[0])
        for x in range(0, image[1], stride[1])
        if y + patch[0] <= image[0] and x + patch[1] <= image[1]
    ]
    grid = Grid(image, patch, stride)
    assert [tuple(r[:2]) for r in grid.rectangles().reshape(-1, 4).tolist()] == expected
    assert grid.count == len(expected) == grid.shape[0] * grid.shape[1]
    assert grid.shape == ((image[0] - patch[0]) // stride[0] + 1, (image[1] - patch[1]) // stride[1] + 1)
    top, left, height, width = corner
    assume(top + height <= image[0] and left + width <= image[1])
    inside = [
        (y, x) for y, x in expected if top <= y and y + patch[0] <= top + height and left <= x and x + patch[1] <= left + width
    ]
    if not inside:
        with pytest.raises(BindError, match=r"no patch of .* lies inside"):
            Grid(image, patch, stride, corner)
        return
    regional = Grid(image, patch, stride, corner)
    assert [tuple(r[:2]) for r in regional.rectangles().reshape(-1, 4).tolist()] == inside


def test_a_grid_of_the_usual_size_has_53_by_53_positions() -> None:
    assert Grid((224, 224), (16, 16), (4, 4)).count == 2809


@pytest.mark.parametrize(
    ("image", "patch", "stride", "region", "text"),
    [
        ((8, 8), (9, 3), (1, 1), None, "larger than the image"),
        ((8, 8), (0, 3), (1, 1), None, "at least 1×1"),
        ((8, 8), (3, 3), (0, 1), None, "at least 1×1"),
        ((8, 8), (3, 3), (1, -1), None, "at least 1×1"),
        ((8, 8), (3, 3), (1, 1), (0, 0, 9, 3), "does not lie inside the image"),
        ((8, 8), (3, 3), (1, 1), (-1, 0, 4, 4), "does not lie inside the image"),
        ((8, 8), (3, 3), (1, 1), (2, 2, 2, 2), "no patch of 3×3"),
    ],
)
def test_impossible_grids_are_refused_with_their_numbers(image, patch, stride, region, text) -> None:
    with pytest.raises(BindError, match=text):
        Grid(image, patch, stride, region)


@given(st.data())
def test_masks_have_the_smallest_boxes_around_their_pixels(data) -> None:
    masks = data.draw(mask_sets((7, 9)))
    for mask, (top, left, height, width) in zip(masks.masks, masks.rectangles().tolist(), strict=True):
        places = mask.nonzero()
        assert [top, left] == places.amin(0).tolist()
        assert [top + height - 1, left + width - 1] == places.amax(0).tolist()


def test_equal_masks_have_equal_names() -> None:
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    masks[0, 1, 2] = masks[1, 3, 3] = True
    other = masks.clone()
    assert Masks(masks).content_hash == Masks(other).content_hash
    other[1, 0, 0] = True
    assert Masks(masks).content_hash != Masks(other).content_hash


def test_tiles_of_a_grid_cover_their_rectangles_in_reading_order() -> None:
    grid = Grid((12, 10), (3, 2), (2, 3))
    tiling = Tiling(rows=(Interval(0, 2), Interval(2, 5)), columns=(Interval(0, 1), Interval(1, 3)))
    tiles = tiling.tiles(grid)
    assert [tile.indices for tile in tiles] == [(0, 3), (1, 2, 4, 5), (6, 9, 12), (7, 8, 10, 11, 13, 14)]
    rectangles = grid.rectangles().reshape(-1, 4)
    for tile in tiles:
        chosen = rectangles[list(tile.indices)]
        assert (tile.rows.start, tile.columns.start) == tuple(chosen[:, :2].amin(0).tolist())
        assert (tile.rows.stop, tile.columns.stop) == tuple((chosen[:, :2] + chosen[:, 2:]).amax(0).tolist())
