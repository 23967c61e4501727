"""Values between known positions of a grid, at their true places: smooth, by multiquadrics.

R. L. Hardy, "Multiquadric equations of topography and other irregular surfaces", Journal of Geophysical Research 76 (1971).
Occlusion maps are smoother than what is linear between positions, and any positions may be known: crossings of a lattice,
those that a drill-down refined, all that a deadline left time for. `docs/approximation.md` compares it with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.ir.occlusions import Grid, Lattice

NEIGHBOURS = 16
"""Known positions that a value is made of, at most; with 24 maps are no better, and it takes twice as long."""

_CHUNK = 4096  # positions at a time


def interpolated(logits: Tensor, grid: Grid, known: Tensor) -> Tensor:
    """Logits (n, K) of all positions of a grid: the known ones (n,) as they are, the others interpolated between those.

    Each is what a sum of multiquadrics sqrt(1 + d²) through the nearest known ones has at its place, with distances d in
    strides; but never beyond the range that the known values of a class have. At least one position is known.
    """
    from scipy.spatial import KDTree  # slow to import, and only approximate maps need it

    places = grid.rectangles().reshape(-1, 4)[:, :2].double() / torch.tensor(grid.stride)
    sources, wanted = known.nonzero()[:, 0], (~known).nonzero()[:, 0]
    result = logits.clone()
    if not len(wanted):
        return result
    count = min(NEIGHBOURS, len(sources))
    found = KDTree(places[sources].numpy()).query(places[wanted].numpy(), count)[1].reshape(-1, count)
    nearest = sources[torch.from_numpy(found)]
    for start in range(0, len(wanted), _CHUNK):
        some, near = wanted[start : start + _CHUNK], nearest[start : start + _CHUNK]
        shares = _shares(places[near], places[some]).to(logits.dtype)
        result[some] = F.embedding_bag(near, logits, per_sample_weights=shares, mode="sum")
    least, most = logits[sources].aminmax(dim=0)
    result[wanted] = result[wanted].clamp(least, most)
    return result


def _shares(known: Tensor, wanted: Tensor) -> Tensor:
    """(m, k): how much of each of its k known places (m, k, 2) there is at every wanted one (m, 2).

    A constant beside the multiquadrics makes the shares add up to 1. Places differ, so there is a solution wherever they lie,
    also all on a line (C. A. Micchelli, "Interpolation of scattered data", Constructive Approximation 2, 1986).
    """
    count, neighbours = known.shape[:2]
    system = known.new_ones(count, neighbours + 1, neighbours + 1)
    system[:, :-1, :-1], system[:, -1, -1] = _multiquadric(torch.cdist(known, known)), 0
    target = known.new_ones(count, neighbours + 1, 1)
    target[:, :-1] = _multiquadric(torch.cdist(known, wanted[:, None]))
    found: Tensor = torch.linalg.solve(system, target)
    return found[:, :-1, 0]


def _multiquadric(distance: Tensor) -> Tensor:
    return (1 + distance.square()).sqrt()


def bilinear(logits: Tensor, grid: Grid, lattice: Lattice) -> Tensor:
    """Logits (n, K) of all positions of a grid, interpolated between those at the crossings of some rows and columns.

    Rows and columns are in order, the first and the last of the grid among them.
    """
    rows, columns = lattice
    known = logits.view(*grid.shape, -1)[list(rows)][:, list(columns)]
    down, across = _between(grid.tops, rows), _between(grid.lefts, columns)
    return torch.einsum("yr,rck,xc->yxk", down, known, across).reshape(logits.shape)


def _between(places: Sequence[int], chosen: Sequence[int]) -> Tensor:
    """(n, m): how much of each of the chosen places there is in every place, by its distance in pixels."""
    weights = torch.zeros(len(places), len(chosen))
    for cell, (first, last) in enumerate(pairwise(chosen)):
        for place in range(first, last + 1):
            share = (places[place] - places[first]) / (places[last] - places[first])
            weights[place, cell], weights[place, cell + 1] = 1 - share, share
    if len(chosen) == 1:
        weights[:, 0] = 1
    return weights
