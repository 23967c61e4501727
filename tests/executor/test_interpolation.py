"""Interpolation between any known positions of a grid."""

from __future__ import annotations

import pytest
import torch

from krypton.executor.interpolation import interpolated
from krypton.ir.occlusions import Grid

GRID = Grid((40, 50), (4, 6), (3, 5))


def plane() -> torch.Tensor:
    """Logits (n, 2) that are linear in the place."""
    places = GRID.rectangles().reshape(-1, 4)[:, :2].float()
    return torch.stack([places @ torch.tensor([2.0, -1.0]) + 3, places[:, 1]], 1)


def some(*places: tuple[int, int]) -> torch.Tensor:
    known = torch.zeros(GRID.shape, dtype=torch.bool)
    for place in places:
        known[place] = True
    return known.flatten()


def test_planes_are_found_again_and_known_values_stay() -> None:
    known = torch.rand(GRID.count, generator=torch.Generator().manual_seed(0)) < 0.2
    known[[0, GRID.shape[1] - 1, -GRID.shape[1], -1]] = True
    logits = torch.where(known[:, None], plane(), torch.nan)
    result = interpolated(logits, GRID, known)
    torch.testing.assert_close(result, plane())
    assert torch.equal(result[known], logits[known])


@pytest.mark.parametrize(
    "known",
    [some((2, 3)), some((2, 3), (4, 4)), some((1, 1), (2, 2), (3, 3)), some((0, 0), (0, 5)), some(*[(3, i) for i in range(9)])],
)
def test_without_triangles_the_nearest_value_is_taken(known: torch.Tensor) -> None:
    logits = torch.where(known[:, None], plane(), torch.nan)
    result = interpolated(logits, GRID, known)
    assert torch.isfinite(result).all()
    values = set(map(tuple, logits[known].tolist()))
    assert set(map(tuple, result.tolist())) <= values


def test_beyond_what_is_known_the_nearest_value_is_taken() -> None:
    known = some((2, 2), (2, 6), (6, 2), (6, 6))
    result = interpolated(torch.where(known[:, None], plane(), torch.nan), GRID, known).view(*GRID.shape, 2)
    assert torch.equal(result[0, 0], plane().view(*GRID.shape, 2)[2, 2])
    torch.testing.assert_close(result[3, 4], plane().view(*GRID.shape, 2)[3, 4])


def test_one_class_and_many() -> None:
    known = some((0, 0), (0, 8), (8, 0), (8, 8))
    logits = plane().repeat(1, 40)
    assert torch.equal(interpolated(logits, GRID, known)[:, :1], interpolated(logits[:, :1], GRID, known))
