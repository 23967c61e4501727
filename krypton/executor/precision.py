"""Low precision made sure of: the error is measured on some positions, and layers that cost too much go back to float32.

The error of a plan is the root mean square of its scores' differences from float32, over that of the score changes
(design, section 5:
tolerance). Positions are evenly drawn from the whole map. If the proposal errs too much, the layers are measured in
groups, and kernels are assigned anew from what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import TensorPlan
from krypton.kernels import find
from krypton.planner.precision import PER_TILE, SAMPLE_TILES, Choice, assign, choices, in_low_precision, with_kernels
from krypton.planner.tiles import sample

Scores = Callable[[Tensor], Tensor]
"""Logits (n, K) to the scores (n, k) that are asked for."""

Run = Callable[[TensorPlan, Sequence[OcclusionTile]], Tensor]
"""Logits (n, K) of the occlusions of some tiles, in their order, by a tensor plan on the views that are there."""

GROUPS, GROUP_TILES = 6, 2
MARGIN = 0.7  # of the tolerance that is aimed at: a sample is not the map
_TRIES = 3
_USED = 0.75  # of what is aimed at: below it another assignment is tried


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
    plan: TensorPlan, tiles: Sequence[OcclusionTile], base: Tensor, scores: Scores, run: Run
) -> tuple[TensorPlan, Precision]:
    """The plan with as much low precision as its tolerance allows on this image."""
    options = choices(plan.graph, plan.alternatives)
    plain = replace(plan, graph=with_kernels(plan.graph, {node: found[0].kernel for node, found in options.items()}))
    chosen = [_thin(tile, PER_TILE) for tile in sample(list(tiles), SAMPLE_TILES)]
    judge = _Judge(run, scores, scores(base[None]), plain, chosen)
    error = judge.error(plan)
    if error > MARGIN * plan.tolerance:
        few = _Judge(run, scores, scores(base[None]), plain, chosen[:: max(len(chosen) // GROUP_TILES, 1)])
        plan, error = _mend(plan, plain, options, _sensitivities(plain, options, few), judge)
    count = sum(len(tile.indices) for tile in chosen)
    return plan, Precision(plan.tolerance, error, count, len(in_low_precision(plan.graph)))


def _mend(
    plan: TensorPlan, plain: TensorPlan, options: dict[int, list[Choice]], sensitivity: dict[int, float], judge: _Judge
) -> tuple[TensorPlan, float]:
    """Kernels assigned by measured sensitivities, which are corrected by what the whole assignment errs; float32 if
    all fails."""
    aim, best, best_error = MARGIN * plan.tolerance, plain, 0.0
    for _ in range(_TRIES):
        candidate = replace(plan, graph=with_kernels(plan.graph, assign(options, sensitivity, aim)))
        error = judge.error(candidate)
        if best_error <= error <= aim:
            best, best_error = candidate, error
        if _USED * aim <= error <= aim:
            break
        correction = min(max(error / (0.9 * aim), 0.3), 10.0)
        sensitivity = {node: value * correction for node, value in sensitivity.items()}
    return best, best_error


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


def _sensitivities(plain: TensorPlan, options: dict[int, list[Choice]], judge: _Judge) -> dict[int, float]:
    """For every convolution that could be faster: the error of the scores per error of its own, alike within a group."""
    able = {node: min(found[1:], key=lambda c: c.error) for node, found in options.items() if len(found) > 1}
    found: dict[int, float] = dict.fromkeys(options, 1.0)
    for group in _groups(list(able), [options[node][0].milliseconds for node in able]):
        graph = with_kernels(plain.graph, {node: able[node].kernel for node in group})
        own = math.sqrt(sum(find("conv", able[node].kernel).error ** 2 for node in group))
        measured = judge.error(replace(plain, graph=graph)) / own
        found.update(dict.fromkeys(group, measured))
    return found


def _groups(nodes: Sequence[int], milliseconds: Sequence[float]) -> list[list[int]]:
    """Neighbouring layers together, each group with about as much time."""
    total, spent = sum(milliseconds), 0.0
    groups: list[list[int]] = [[] for _ in range(GROUPS)]
    for node, ms in zip(nodes, milliseconds, strict=True):
        groups[min(int(spent / total * GROUPS), GROUPS - 1)].append(node)
        spent += ms
    return [group for group in groups if group]


def _thin(tile: OcclusionTile, most: int) -> OcclusionTile:
    """A few of a tile's occlusions, on the same box."""
    step = max(len(tile.indices) // most, 1)
    return tile.part(slice(0, most * step, step))
