"""Low precision made sure of: the error is measured on some positions, and layers that cost too much go back to float32.

The error of a plan is the root mean square of its scores' differences from float32, over that of the score changes
(design, section 5:
tolerance). Positions are evenly drawn from the whole map. If the proposal errs too much, one backward pass measures how
sensitive the scores are to each layer (`sensitivity`), and kernels are assigned anew from what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import TensorPlan
from krypton.planner.precision import (
    MARGIN,
    PER_TILE,
    SAMPLE_TILES,
    Choice,
    choices,
    in_low_precision,
    predicted_error,
    propose,
    with_kernels,
)
from krypton.planner.tiles import sample

Scores = Callable[[Tensor], Tensor]
"""Logits (n, K) to the scores (n, k) that are asked for."""

Run = Callable[[TensorPlan, Sequence[OcclusionTile]], Tensor]
"""Logits (n, K) of the occlusions of some tiles, in their order, by a tensor plan on the views that are there."""

IMAGES = 2
"""Occluded images of the backward pass: it tells layers apart, how large the error is as a whole the sample says."""

_TRIES = 3
_OFF_BY_LITTLE = 1.5  # times what is aimed at
_WASTED = 0.4  # of what is aimed at
_USED = 0.6  # of what is aimed at: below it another assignment is tried


@dataclass(frozen=True)
class Precision:
    """What low precision costs: the measured relative error, on how many positions, and how many convolutions have it."""

    tolerance: float
    error: float
    positions: int
    convolutions: int


def probability_of_prediction(base: Tensor) -> Scores:
    """The usual score: softmax probability of the class that the unmodified image has (sigmoid for a single output)."""
    if base.shape[-1] == 1:
        return torch.sigmoid
    predicted = int(base.argmax())
    return lambda logits: torch.softmax(logits, -1)[:, predicted : predicted + 1]


def settle(
    plan: TensorPlan,
    tiles: Sequence[OcclusionTile],
    base: Tensor,
    scores: Scores,
    run: Run,
    measure: Callable[[Sequence[int], Collection[int]], dict[int, float]],
) -> tuple[TensorPlan, Precision]:
    """The plan with as much low precision as its tolerance allows on this image; its `sensitivity` is what it was chosen by.

    `measure` gives, from some occlusions, the sensitivity of some convolutions up to a common factor.
    """
    options = choices(plan.graph, plan.alternatives)
    plain = replace(plan, graph=with_kernels(plan.graph, {node: found[0].kernel for node, found in options.items()}))
    chosen = [_thin(tile, PER_TILE) for tile in sample(list(tiles), SAMPLE_TILES)]
    judge = _Judge(run, scores, scores(base[None]), plain, chosen)
    error = judge.error(plan)
    expected = predicted_error(_picked(plan, options), plan.sensitivity)
    if 0 < error < _WASTED * MARGIN * plan.tolerance and not _alike(plan.sensitivity):
        # this map has its plan, but what is remembered of the model is too cautious
        plan = replace(plan, sensitivity=_scaled(plan.sensitivity, error / expected))
    elif error > MARGIN * plan.tolerance:
        inner = [tile.indices[0] for tile in chosen[1:-1] or chosen]
        plan, error = _mend(plan, plain, error, options, judge, lambda: measure(inner[:IMAGES], options))
    count = sum(len(tile.indices) for tile in chosen)
    return plan, Precision(plan.tolerance, error, count, len(in_low_precision(plan.graph)))


def _mend(
    plan: TensorPlan,
    plain: TensorPlan,
    error: float,
    options: dict[int, list[Choice]],
    judge: _Judge,
    measure: Callable[[], dict[int, float]],
) -> tuple[TensorPlan, float]:
    """Kernels assigned anew by measured sensitivities, which are corrected by what the whole assignment errs; float32 if all
    fails. Sensitivities that are off by little are corrected without measuring them first."""
    aim, best, best_error, tried = MARGIN * plan.tolerance, plain, 0.0, plan
    sensitivity = plan.sensitivity
    if error > _OFF_BY_LITTLE * aim or _alike(sensitivity):
        sensitivity = measure() or sensitivity
    for _ in range(_TRIES):
        expected = predicted_error(_picked(tried, options), sensitivity)
        if not 0 < expected < math.inf or not error < math.inf:
            break
        # errors do not just add up: when there is room left, half the way is enough
        correction = error / expected if error > aim else math.sqrt(error / expected)
        sensitivity = _scaled(sensitivity, correction)
        graph = with_kernels(plan.graph, propose(options, sensitivity, plan.tolerance))
        if graph == plain.graph and best is plain:  # nothing fits
            return replace(plain, sensitivity=sensitivity), 0.0
        if graph in (tried.graph, best.graph):
            break
        tried = replace(plan, graph=graph, sensitivity=sensitivity)
        error = judge.error(tried)
        if best_error <= error <= aim:
            best, best_error = tried, error
        if error == 0 or _USED * aim <= error <= aim:
            break
    if best is plain and tried is not plan:
        best = replace(plain, sensitivity=_scaled(sensitivity, error / predicted_error(_picked(tried, options), sensitivity)))
    return best, best_error


def _alike(sensitivity: Mapping[int, float]) -> bool:
    """Was nothing measured that tells layers apart?"""
    return len(set(sensitivity.values())) <= 1


def _scaled(sensitivity: Mapping[int, float], factor: float) -> dict[int, float]:
    return {node: value * factor for node, value in sensitivity.items()}


def _picked(plan: TensorPlan, options: Mapping[int, list[Choice]]) -> dict[int, Choice]:
    """What a plan chose of the options."""
    nodes = plan.graph.index()
    kernels = {node: nodes[node].own_kernel for node in options}
    return {node: next((c for c in found if c.kernel == kernels[node]), found[0]) for node, found in options.items()}


class _Judge:
    """Errors of plans on some positions against the same in float32."""

    def __init__(self, run: Run, scores: Scores, base: Tensor, plain: TensorPlan, tiles: Sequence[OcclusionTile]) -> None:
        self._run, self._scores, self._tiles = run, scores, tiles
        self._exact = scores(run(plain, tiles)).double()
        self._size = (self._exact - base.double()).square().mean(0).sqrt()

    def error(self, plan: TensorPlan) -> float:
        """The relative error of the worst score; infinite when nothing changes any score and yet there is an error."""
        off = (self._scores(self._run(plan, self._tiles)).double() - self._exact).square().mean(0).sqrt()
        worst = torch.where(off == 0, 0.0, off / self._size)
        return float(worst.nan_to_num(nan=math.inf).max())


def _thin(tile: OcclusionTile, most: int) -> OcclusionTile:
    """A few of a tile's occlusions, on the same box."""
    step = max(len(tile.indices) // most, 1)
    return tile.part(slice(0, most * step, step))
