"""Quality: how far an approximate heat map is from the exact one, for the tuner, queries with a goal and benchmarks.

SSIM is taken on the coloured maps, as in the papers, pinned down to its window; the numbers beside it need no colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krypton.errors import BindError
from krypton.results import pictures
from krypton.results.heatmap import Heatmap

# Below this range of exact drops there is nothing to see, and SSIM would compare noise.
MIN_EXACT_RANGE = 0.02


@dataclass(frozen=True)
class Quality:
    """How an approximate map compares with the exact one.

    - ssim: structural similarity of the colour renderings at grid resolution, 1 when equal; None when the exact range
      is under `MIN_EXACT_RANGE`, for masks, and for grids under 3x3, which have no window
    - relative_rmse: root mean squared error of the drops over the exact range; 0 when equal
    - spearman: rank correlation of the drops; None when either map is constant
    - top10_overlap: share of the exact tenth of positions with the greatest drops that is in the approximate one too
    - exact_range: greatest less smallest exact drop
    """

    ssim: float | None
    relative_rmse: float
    spearman: float | None
    top10_overlap: float
    exact_range: float


def compare(approximate: Heatmap, exact: Heatmap) -> Quality:
    """The quality of `approximate`, by the class and score of `exact`.

    Positions of `approximate` that are not known yet count in SSIM alone, where they are drawn gray. Raises BindError
    when the maps have different grids, when `exact` is incomplete or when nothing of `approximate` is known.
    """
    if approximate.known.shape != exact.known.shape or not approximate.positions.equal(exact.positions):
        raise BindError("heat maps of different positions cannot be compared")
    if not exact.complete:
        raise BindError("the exact heat map is not complete")
    if not approximate.known.any():
        raise BindError("nothing of the approximate heat map is known yet")
    approximate = approximate.for_class(exact.target).with_score(exact.score_kind)
    known = approximate.known.numpy()
    approximate_drop, exact_drop = approximate.drop()[known], exact.drop()[known]
    exact_range = float(np.ptp(exact.drop()))
    rmse = float(np.sqrt(np.mean((approximate_drop - exact_drop).astype(np.float64) ** 2)))
    return Quality(
        ssim=_ssim(approximate, exact) if exact_range >= MIN_EXACT_RANGE else None,
        relative_rmse=rmse / exact_range if exact_range else (0.0 if rmse == 0 else float("inf")),
        spearman=_spearman(approximate_drop, exact_drop),
        top10_overlap=_top_overlap(approximate_drop, exact_drop),
        exact_range=exact_range,
    )


def _ssim(approximate: Heatmap, exact: Heatmap) -> float | None:
    shape = exact.known.shape
    if exact.masks is not None or min(shape) < 3:
        return None
    from skimage.metrics import structural_similarity

    scale = pictures.scale_of(exact)  # one scale for both, or a shift of all scores would go unseen
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            pictures.colourise(approximate.heatmap, scale),
            pictures.colourise(exact.heatmap, scale),
            data_range=255,
            channel_axis=2,
            win_size=7 if min(shape) >= 7 else 3,
        )
    )


def _spearman(approximate: NDArray[np.float32], exact: NDArray[np.float32]) -> float | None:
    if np.ptp(approximate) == 0 or np.ptp(exact) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(approximate, exact).statistic)


def _top_overlap(approximate: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    count = max(1, round(exact.size / 10))
    top = (set(np.argsort(-drops, kind="stable")[:count].tolist()) for drops in (approximate, exact))
    return len(set.intersection(*top)) / count
