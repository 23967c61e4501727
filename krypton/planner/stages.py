"""The stages of an approximate query: adaptive drill-down, and exact values held out to measure the quality.

Belongs to the query plan: which positions are computed, in which order. The papers' drill-down (equations 38 and 39)
computes a coarse map first, then the most sensitive part of it at the stride that was asked for. Here coarse positions are
positions of the fine grid, so that nothing is computed twice, and what remains is interpolated at its true place.
"""

from __future__ import annotations

import math
from dataclasses import replace

from krypton.errors import BindError
from krypton.ir.graph import Graph
from krypton.ir.occlusions import Grid, Occlusions
from krypton.ir.plan import Approximation, Stage
from krypton.planner.cost import DeviceProfile
from krypton.planner.goals import check_grid, goal_stages
from krypton.planner.order import evenly
from krypton.planner.tiles import cheapest_tiling
from krypton.settings import Settings

MEASURED = 16
"""Positions that changes are measured on, at least, before fields are cut."""

COARSEST = 3
"""Steps across the map, at least, on the first level of a query with a deadline."""

SLACK = 0.95  # of the speed-up asked for: steps are whole numbers, and 2.9 is near enough to 3


def plan_stages(
    occlusions: Occlusions, approximation: Approximation, *, exact: bool, measure: bool = False
) -> tuple[Stage, ...]:
    """The stages that answer a query; `exact` says whether what is computed is, so that only interpolation is approximate.

    `measure`: begin with positions that show where changes are; the quality is then measured on the same ones. Raises
    BindError when a drill-down is asked for and there is no grid, or the speed-up cannot be reached on it.
    """
    if approximation.ssim is not None:
        check_grid(occlusions)
    total = occlusions.count
    if approximation.within is not None:
        return _levels(occlusions, max(math.ceil(approximation.quality_share * total), MEASURED) if measure else 0)
    if approximation.ssim is not None:
        return goal_stages(occlusions, approximation)
    if approximation.drilldown is None or approximation.speedup is None:
        stages, rough, rest = [Stage("every", total)], 0 if exact else total, None
        if approximation.correct is not None and not exact:
            if not isinstance(occlusions, Grid):
                raise BindError("correct needs a grid of positions: leave it out with MASKS")
            rows, columns = (evenly(length, approximation.correct) for length in occlusions.shape)
            stages.append(Stage("correct", len(rows) * len(columns), rows, columns))
            rough -= stages[-1].count
    else:
        if not isinstance(occlusions, Grid):
            raise BindError(
                "drilldown needs a grid of positions, and is what MODE APPROXIMATE does unless told otherwise: with MASKS use "
                "WITH (keep => 0.999) or tau, or MODE EXACT"
            )
        rows, columns = coarse_lattice(occlusions, approximation.drilldown, approximation.speedup)
        coarse = len(rows) * len(columns)
        refined = round(approximation.drilldown * (total - coarse))
        rest = total - coarse - refined
        stages = [Stage("coarse", coarse, rows, columns), Stage("refine", refined)]
        rough = rest if exact else total
    held_out = min(math.ceil(approximation.quality_share * total), rough)
    if measure:
        held_out = min(max(held_out, MEASURED), total)
        stages = [Stage("measure", held_out), *stages]
    if held_out:
        stages.append(Stage("hold_out", held_out))
    if rest is not None:  # of it those held out are known by then
        stages.append(Stage("interpolate", rest - round(held_out * rest / max(rough, 1))))
    return tuple(stages)


def with_tilings(
    stages: tuple[Stage, ...], graph: Graph, occlusions: Occlusions, profile: DeviceProfile, settings: Settings
) -> tuple[Stage, ...]:
    """The stages with coarse positions, also those of levels, gathered into tiles of their own; they lie too far apart for
    those of all positions."""
    return tuple(
        replace(stage, tiling=cheapest_tiling(graph, occlusions, profile, settings, (stage.rows, stage.columns)))
        if stage.rows
        else stage
        for stage in stages
    )


def _levels(occlusions: Occlusions, measured: int) -> tuple[Stage, ...]:
    """The stages of a query with a deadline: lattices of half the step of the one before, down to all positions."""
    total = occlusions.count
    stages = [Stage("measure", min(measured, total))] if measured else []
    done = 0
    if isinstance(occlusions, Grid):
        height, width = occlusions.shape
        step = 2 ** int(math.log2(max(max(height, width) / COARSEST, 1)))
        while step > 1:
            rows, columns = evenly(height, step), evenly(width, step)
            count = len(rows) * len(columns)
            if count > done:
                stages.append(Stage("level", count - done, rows, columns))
            done, step = count, step // 2
    return (*stages, Stage("level", total - done)) if total > done else tuple(stages)


def first_stride(share: float, speedup: float) -> float:
    """How many times the user's stride that of the first stage is, before it is rounded.

    The papers' equation 38 is sqrt(s / (1 - r s)), for a second stage that computes all its positions. Here what the first
    stage computed is known, and the factor that gives the speed-up s is sqrt(s (1 - r) / (1 - r s)). Raises BindError
    where r s >= 1: the second stage alone would take longer.
    """
    if share * speedup >= 1:
        raise BindError(
            f"drilldown {share:g} and speedup {speedup:g} contradict each other: {share:g} of the positions alone allow "
            f"at most {1 / share:.3g} times fewer; choose them so that their product is below 1"
        )
    return math.sqrt(speedup * (1 - share) / (1 - share * speedup))


def coarse_lattice(grid: Grid, share: float, speedup: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The rows and columns of the grid whose crossings the first stage computes, the last ones included.

    Steps are whole numbers of strides, rows' and columns' at most one apart: the finest that reach the speed-up, counted on
    this very grid. Raises BindError where even the corners alone do not (the papers' equation 39: the first stride is
    bounded by the image).
    """
    wanted, total = first_stride(share, speedup), grid.count
    height, width = grid.shape
    pairs = [(step, step + across) for step in range(1, max(height, width, 2)) for across in (0, 1)]
    lattices = [(evenly(height, down), evenly(width, across)) for pair in pairs for down, across in (pair, pair[::-1])]

    def reached(lattice: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
        coarse = len(lattice[0]) * len(lattice[1])
        return total / (coarse + share * (total - coarse))

    able = [lattice for lattice in lattices if reached(lattice) >= SLACK * speedup]
    if not able:
        raise BindError(
            f"speedup {speedup:g} with drilldown {share:g} needs a first stride of {wanted:.1f} times the stride, and the grid "
            f"of {height}×{width} positions allows a speed-up of at most {max(map(reached, lattices)):.2f}: choose a smaller "
            "speedup or STRIDE, or a larger region"
        )
    return max(able, key=lambda lattice: len(lattice[0]) * len(lattice[1]))


def reaches(grid: Grid, share: float, speedup: float) -> bool:
    """Whether the grid is large enough for a drill-down."""
    try:
        coarse_lattice(grid, share, speedup)
    except BindError:
        return False
    return True
