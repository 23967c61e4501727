"""Values between known positions of a grid, at their true places: linear within triangles, the nearest value outside.

Bilinear interpolation wants a lattice (`stages.bilinear`); here any positions may be known.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from krypton.ir.occlusions import Grid


def interpolated(logits: Tensor, grid: Grid, known: Tensor) -> Tensor:
    """Logits (n, K) of all positions of a grid: the known ones (n,) as they are, the others interpolated between those.

    Linear on the triangles of Delaunay's triangulation of the known places; beyond them the nearest known value. At least
    one position is known.
    """
    places = grid.rectangles().reshape(-1, 4)[:, :2].numpy().astype(np.float64)
    chosen = known.numpy()
    sources = np.flatnonzero(chosen)
    corners, weights = _weights(places[chosen], places[~chosen])
    shares = torch.from_numpy(weights).to(logits.dtype)
    result = logits.clone()
    result[~known] = F.embedding_bag(torch.from_numpy(sources[corners]), logits, per_sample_weights=shares, mode="sum")
    return result


def _weights(known: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every wanted place (m, 2) three of the known ones (k, 2), and how much there is of each."""
    from scipy.spatial import Delaunay, KDTree, QhullError  # slow to import, and only partial maps need it

    nearest = KDTree(known).query(wanted)[1]
    corners = np.repeat(nearest[:, None].astype(np.int64), 3, 1)
    weights = np.tile([1.0, 0.0, 0.0], (len(wanted), 1))
    try:
        triangles = Delaunay(known)
    except (QhullError, ValueError):  # fewer than three places, or all on a line
        return corners, weights
    found = triangles.find_simplex(wanted)
    inside = found >= 0
    to_barycentric = triangles.transform[found[inside]]
    first = np.einsum("mij,mj->mi", to_barycentric[:, :2], wanted[inside] - to_barycentric[:, 2])
    flat = np.isfinite(first).all(1)  # of a triangle without an area nothing can be said
    within = np.flatnonzero(inside)[flat]
    corners[within] = triangles.simplices[found[within]]
    weights[within] = np.column_stack([first[flat], 1 - first[flat].sum(1)])
    return corners, weights
