"""Interpolation between any known positions of a grid, and between the crossings of a lattice."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.interpolate import RBFInterpolator, RegularGridInterpolator
from torch import Tensor

from krypton.executor.interpolation import NEIGHBOURS, _shares, _solved, bilinear, interpolated
from krypton.ir.occlusions import Grid
from krypton.planner.order import evenly

GRID = Grid((40, 50), (4, 6), (3, 5))


def hills() -> Tensor:
    """Smooth logits (n, 2)."""
    down, across = (GRID.rectangles().reshape(-1, 4)[:, :2].double() / torch.tensor(GRID.stride)).T
    return torch.stack([(down / 5).sin() * (across / 4).cos(), down * across / 20], 1).float()


def some(*places: tuple[int, int]) -> Tensor:
    known = torch.zeros(GRID.shape, dtype=torch.bool)
    for place in places:
        known[place] = True
    return known.flatten()


def drawn(share: float, seed: int = 0) -> Tensor:
    return torch.rand(GRID.count, generator=torch.Generator().manual_seed(seed)) < share


def interpolated_from(known: Tensor, logits: Tensor) -> Tensor:
    """What is not known is not looked at."""
    return interpolated(torch.where(known[:, None], logits, torch.nan), GRID, known)


def test_known_values_stay_as_they_are() -> None:
    known, logits = drawn(0.3), hills()
    assert torch.equal(interpolated_from(known, logits)[known], logits[known])


def test_multiquadrics_through_all_of_few_known_places() -> None:
    known, logits = drawn(0.1, seed=2), hills()
    assert 4 < known.sum() <= NEIGHBOURS
    places = GRID.rectangles().reshape(-1, 4)[:, :2].numpy() / np.array(GRID.stride)
    oracle = RBFInterpolator(places[known], logits[known].numpy(), kernel="multiquadric", epsilon=1, degree=0)(places)
    least, most = logits[known].aminmax(dim=0)
    result = interpolated_from(known, logits)
    assert np.allclose(result, np.clip(oracle, least.numpy(), most.numpy()), atol=1e-5)


def test_through_the_nearest_of_many() -> None:
    known, logits = drawn(0.4).view(GRID.shape), hills()
    known[[0, -1]] = known[:, [0, -1]] = True  # beyond them nothing is known
    known = known.flatten()
    assert known.sum() > 2 * NEIGHBOURS
    error, bulge = (interpolated_from(known, logits) - logits)[~known].abs(), logits.std(0)
    assert bool((error.mean(0) < 0.05 * bulge).all())


@given(st.integers(1, GRID.count - 1), st.integers(0, 99))
def test_constants_are_found_again_and_nothing_leaves_the_range_of_what_is_known(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    known = torch.zeros(GRID.count, dtype=torch.bool)
    known[torch.randperm(GRID.count, generator=generator)[:count]] = True
    logits = torch.cat([torch.full((GRID.count, 1), 2.5), torch.randn(GRID.count, 2, generator=generator)], 1)
    result = interpolated_from(known, logits)
    assert torch.equal(result[:, 0], logits[:, 0])
    assert bool((result >= logits[known].amin(0)).all())
    assert bool((result <= logits[known].amax(0)).all())


@pytest.mark.parametrize(
    "known",
    [some((2, 3)), some((2, 3), (4, 4)), some((1, 1), (2, 2), (3, 3)), some((0, 0), (0, 5)), some(*[(3, i) for i in range(9)])],
)
def test_known_places_may_be_few_or_all_on_a_line(known: Tensor) -> None:
    assert torch.isfinite(interpolated_from(known, hills())).all()


def test_a_grid_of_one_row() -> None:
    grid = Grid((6, 40), (6, 4), (2, 4))
    logits = torch.arange(10.0)[:, None]
    known = torch.tensor([True, False] * 5)
    between = interpolated(logits, grid, known)[1:-1]
    assert torch.allclose(between, logits[1:-1], atol=0.1)


def test_neighbours_that_lie_alike_have_the_same_shares_as_if_each_were_solved() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.stack([torch.randperm(81, generator=generator)[:6] for _ in range(5)])
    offsets = torch.stack([kinds // 9 - 4, kinds % 9 - 4], 2)[torch.randint(5, (40,), generator=generator)]
    assert torch.allclose(_shares(offsets), _solved(offsets.double()))


def test_one_class_and_many() -> None:
    known = some((0, 0), (0, 8), (8, 0), (8, 8))
    logits = hills().repeat(1, 40)
    assert torch.equal(interpolated(logits, GRID, known)[:, :1], interpolated(logits[:, :1], GRID, known))


def test_only_what_is_asked_about() -> None:
    known, asked = some((0, 0), (0, 8), (8, 0), (8, 8)), torch.tensor([40, 0, 13])
    assert torch.equal(interpolated(hills(), GRID, known, asked), interpolated(hills(), GRID, known)[asked])


def test_what_is_not_finite_stays_where_it_is() -> None:
    known, logits = torch.arange(GRID.count) % 2 == 0, hills().clone()
    logits[40] = torch.nan
    found = interpolated(logits, GRID, known)
    assert found.isnan().any(1).nonzero()[:, 0].tolist() == [40]
    known[40] = False
    others = torch.arange(GRID.count) != 40
    assert torch.equal(found[others], interpolated(logits, GRID, known)[others])


def test_everything_known() -> None:
    assert torch.equal(interpolated(hills(), GRID, torch.ones(GRID.count, dtype=torch.bool)), hills())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4))
def test_planes_are_bilinear(height: int, width: int, down: int, across: int) -> None:
    grid = Grid((3 * height, 2 * width), (2, 1), (3, 2))
    boxes = grid.rectangles().reshape(-1, 4).float()
    plane = torch.stack([2 * boxes[:, 0] - boxes[:, 1], boxes[:, 0] + 5], -1)
    lattice = evenly(grid.shape[0], down), evenly(grid.shape[1], across)
    assert torch.allclose(bilinear(plane, grid, lattice), plane, atol=1e-4)


def test_bilinear_between_the_crossings_of_a_lattice() -> None:
    lattice = evenly(GRID.shape[0], 4), evenly(GRID.shape[1], 3)
    known = hills().view(*GRID.shape, 2)[list(lattice[0])][:, list(lattice[1])]
    axes = [[places[place] for place in chosen] for places, chosen in zip((GRID.tops, GRID.lefts), lattice, strict=True)]
    oracle = RegularGridInterpolator(axes, known.numpy())(GRID.rectangles()[..., :2].numpy())
    assert np.allclose(bilinear(hills(), GRID, lattice).view(*GRID.shape, 2), oracle, atol=1e-5)
