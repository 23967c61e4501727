"""Values between known positions of a grid, at their true places: smooth, by multiquadrics.

R. L. Hardy, "Multiquadric equations of topography and other irregular surfaces", Journal of Geophysical Research 76 (1971).
Occlusion maps are smoother than what is linear between positions, and any positions may be known: crossings of a lattice,
those that a drill-down refined, all that a deadline left time for. `docs/approximation.md` compares it with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.ir.occlusions import Grid, Lattice

NEIGHBOURS = 16
"""Known positions that a value is made of, at most; made of all of them maps are no better (`benchmarks.interpolation`)."""

_TOGETHER = 4096  # systems that are solved at a time


def interpolated(logits: Tensor, grid: Grid, known: Tensor, asked: Tensor | None = None) -> Tensor:
    """Logits of all positions of a grid (n, K), or of those `asked` about, (m,), in their order: (m, K).

    The known ones (n,) are as they are, the others interpolated between those that are finite.

    Each is what a sum of multiquadrics sqrt(1 + d²) through the nearest known ones has at its place, with distances d in
    strides; but never beyond the range that the known values of a class have. At least one position is known.
    """
    from scipy.spatial import KDTree  # slow to import, and only approximate maps need it

    result, unknown = (logits.clone(), ~known) if asked is None else (logits[asked], ~known[asked])
    if not bool(unknown.any()):
        return result
    wanted, sources = unknown.nonzero()[:, 0] if asked is None else asked[unknown], known.nonzero()[:, 0]
    finite = logits[sources].isfinite().all(1)
    sources = sources[finite] if bool(finite.any()) else sources
    places = torch.cartesian_prod(*map(torch.arange, grid.shape))
    count = min(NEIGHBOURS, len(sources))
    found = torch.from_numpy(KDTree(places[sources].numpy()).query(places[wanted].numpy(), count)[1])
    near = sources[found.reshape(-1, count).sort(1).values]
    shares = _shares(places[near] - places[wanted][:, None]).to(logits.dtype)
    least, most = logits[sources].aminmax(dim=0)
    result[unknown] = F.embedding_bag(near, logits, per_sample_weights=shares, mode="sum").clamp(least, most)
    return result


def _shares(offsets: Tensor) -> Tensor:
    """(m, k): how much of each of its k neighbours there is in every value, by how far they are from it, (m, k, 2) in strides.

    Around the crossings of a lattice most positions have neighbours that lie alike: each arrangement is solved once. They are
    told apart by a random number that is made of all offsets.
    """
    coefficients = torch.randint(2**62, offsets.shape[1:], generator=torch.Generator().manual_seed(0))
    _, first, alike = np.unique((offsets * coefficients).sum((1, 2)).numpy(), return_index=True, return_inverse=True)
    arrangements = offsets[torch.from_numpy(first)].double()
    parts = [arrangements[start : start + _TOGETHER] for start in range(0, len(arrangements), _TOGETHER)]
    return torch.cat([_solved(part) for part in parts])[torch.from_numpy(alike)]


def _solved(offsets: Tensor) -> Tensor:
    """The shares (m, k) of neighbours that lie so far from the places wanted, (m, k, 2).

    A constant beside the multiquadrics makes the shares add up to 1. Places differ, so there is a solution wherever they lie,
    also all on a line (C. A. Micchelli, "Interpolation of scattered data", Constructive Approximation 2, 1986).
    """
    count, neighbours = offsets.shape[:2]
    system = offsets.new_ones(count, neighbours + 1, neighbours + 1)
    system[:, :-1, :-1], system[:, -1, -1] = _multiquadric(torch.cdist(offsets, offsets)), 0
    target = offsets.new_ones(count, neighbours + 1, 1)
    target[:, :-1, 0] = _multiquadric(offsets.norm(dim=2))
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
