"""Quality: how far an approximate heat map is from the exact one, for the tuner, queries with a goal and benchmarks.

SSIM is taken on the coloured maps, as in the papers, pinned down to its window; the numbers beside it need no colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krypton.errors import BindError
from krypton.results.heatmap import Heatmap
from krypton.results.pictures import Scale, colourise, scale_of
from krypton.results.scores import score

# Below this range of exact drops there is nothing to see, and SSIM would compare noise.
MIN_EXACT_RANGE = 0.02

# What errors are measured in: the map's slope round about, in so many positions (at a peak itself there is none), plus these
# parts of its drop and of its range.
AROUND, DROP, FLAT = 1.0, 0.1, 1e-3
FEW = 8  # held out positions; what fewer say is said to be of only so many
NEAREST, DRAWS = 4, 6  # held out positions that an error may be like, and how often errors are drawn


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

    Positions of `approximate` that are not known yet count in SSIM alone, as they are drawn. Raises BindError
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
        # one scale for both, or a shift of all scores would go unseen
        ssim=None if _without_ssim(exact, exact_range) else _similarity(approximate.heatmap, exact.heatmap, scale_of(exact)),
        relative_rmse=rmse / exact_range if exact_range else (0.0 if rmse == 0 else float("inf")),
        spearman=_spearman(approximate_drop, exact_drop),
        top10_overlap=_top_overlap(approximate_drop, exact_drop),
        exact_range=exact_range,
    )


@dataclass(frozen=True)
class MeasuredQuality:
    """What an approximate map says of its own quality, for its class and score.

    - approximations: what made its values approximate, as WITH has it
    - positions: on how many positions, held out and then computed exactly, it was measured; 0 when there are none
    - ssim: an estimate of `Quality.ssim`; None where that is, and without held out positions
    - relative_rmse: an estimate of `Quality.relative_rmse`; None without held out positions and for flat maps
    - without_ssim: why there is no SSIM although positions were held out; empty where there is
    """

    approximations: tuple[str, ...]
    positions: int
    ssim: float | None
    relative_rmse: float | None
    without_ssim: str = ""

    def __str__(self) -> str:
        text = f"approximate ({', '.join(self.approximations)})"
        if not self.positions:
            return f"{text}, of unmeasured quality"
        found = f"no SSIM ({self.without_ssim})" if self.ssim is None else f"SSIM about {self.ssim:.2f}"
        error = "" if self.relative_rmse is None else f"RMSE about {self.relative_rmse:.1%} of the range, "
        few = "only " if self.positions < FEW else ""
        return f"{text}: {found}, {error}measured on {few}{self.positions} position{'s' if self.positions > 1 else ''}"


def measured(heatmap: Heatmap) -> MeasuredQuality:
    """The quality of a map with held out positions, from the errors found there.

    Errors like them are simulated at all positions that are not exact, several times over, and the maps with these errors
    compared with the map. docs/approximation.md compares the estimates with the truth.
    """
    names, held_out = tuple(heatmap.info.get("approximations", ())), heatmap.held_out
    if held_out is None:
        return MeasuredQuality(names, 0, None, None)
    thought = score(held_out.logits, heatmap.target, heatmap.score_kind, heatmap.activation).numpy()
    found, known, places = heatmap.heatmap, heatmap.known.numpy(), held_out.indices.numpy()
    errors = found.ravel()[places] - thought
    simulated = [np.where(known & ~heatmap.exact.numpy(), field, 0) for field in _simulated(heatmap, places, errors)]
    exact_range = float(np.ptp(found[known]))
    rmse = float(np.sqrt(np.mean([np.mean(field[known] ** 2) for field in simulated])))
    invisible = _without_ssim(heatmap, exact_range)
    scale = scale_of(heatmap)
    similarities = [_similarity(found, (found + field).astype(np.float32), scale) for field in simulated if not invisible]
    return MeasuredQuality(
        names,
        len(errors),
        None if invisible else float(np.mean(similarities)),
        rmse / exact_range if exact_range else None,
        invisible,
    )


def _without_ssim(heatmap: Heatmap, exact_range: float) -> str:
    """Why a map has no SSIM, if it has none."""
    if heatmap.masks is not None:
        return "masks have no grid"
    if min(heatmap.known.shape) < 3:
        return "the grid is under 3x3"
    return f"the map is flat: its range is under {MIN_EXACT_RANGE:g}" if exact_range < MIN_EXACT_RANGE else ""


def _simulated(heatmap: Heatmap, places: NDArray[np.int64], errors: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """Fields of errors of the kind that was found at some places of a map.

    Errors are larger where the map is steep and where the occlusion changes much, and they differ from region to region.
    So they are taken in units of slope and drop, and every position draws one of those few that are nearest. Where a map has
    a peak its slope is zero, but what is interpolated errs there: the slope is the root mean square of the neighbourhood's.
    """
    found, draw = heatmap.heatmap.astype(np.float64), np.random.default_rng(0)
    if heatmap.masks is not None:  # none is near another
        yield from (draw.choice(errors, found.shape).astype(np.float64) for _ in range(DRAWS))
        return
    from scipy.ndimage import gaussian_filter, sobel
    from scipy.spatial import KDTree

    slope = np.sqrt(gaussian_filter(sobel(found, 0) ** 2 + sobel(found, 1) ** 2, AROUND)) / 8
    unit = slope + DROP * np.abs(found - heatmap.base_score) + FLAT * np.ptp(found) + np.finfo(np.float64).tiny
    relative = errors / unit.ravel()[places]
    tree, nearest = KDTree(np.stack(np.unravel_index(places, found.shape), -1)), min(NEAREST, len(places))
    _, near = tree.query(np.moveaxis(np.indices(found.shape), 0, -1), list(range(1, nearest + 1)))
    for _ in range(DRAWS):
        drawn = np.take_along_axis(near, draw.integers(nearest, size=found.shape)[..., None], -1)[..., 0]
        yield relative[drawn] * unit


def _similarity(approximate: NDArray[np.float32], exact: NDArray[np.float32], scale: Scale) -> float:
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            colourise(approximate, scale),
            colourise(exact, scale),
            data_range=255,
            channel_axis=2,
            win_size=7 if min(exact.shape) >= 7 else 3,
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
