"""The stages of a query with a goal for its quality, `WITH (ssim => x)`, where no tuning says what reaches it.

A ladder from few positions to all: ever finer lattices, and the most sensitive positions between them, all computed exactly, so
that nothing is computed twice and the last rung is the exact map. Positions that are held out judge every rung; the executor
(`executor.goals`) leaves out the rungs above the first one that is good enough.
"""

from __future__ import annotations

import math

from krypton.errors import BindError
from krypton.ir.occlusions import Grid, Occlusions
from krypton.ir.plan import Approximation, Stage
from krypton.planner.order import evenly

STEPS = (8, 4, 2)
"""Steps of the lattices in strides of the query, each lattice in the next one."""

SHARES = {4: 0.1, 2: 0.2}
"""By step: the share of all positions that is refined before the next rung."""

LEAST = 5
"""Rows and columns of a lattice: with fewer, what is between them is anybody's guess."""

HELD_OUT, FEW = 24, 64
"""Positions that are held out at least; and of how few in all that would not be worth while."""

KEEPS = (0.97, 0.99, 0.999)
"""Energy cuts for the last rung, where even it must be computed; the hardest that is good enough."""


def goal_stages(occlusions: Occlusions, approximation: Approximation) -> tuple[Stage, ...]:
    """The ladder, with the counts of one that is climbed to the end. Maps that are too small are computed exactly.

    Raises BindError for masks: SSIM compares maps over a grid.
    """
    grid, total = check_grid(occlusions), occlusions.count
    lattices = _lattices(grid) if total >= FEW else {}
    if not lattices:
        return (Stage("every", total),)
    sizes = [len(rows) * len(columns) for rows, columns in lattices.values()]
    # positions of a lattice are never held out: they say nothing of what is between them
    held_out = min(max(math.ceil(approximation.quality_share * total), HELD_OUT), total - sizes[-1])
    stages, left = [Stage("measure", held_out)], total
    for (step, lattice), size, before in zip(lattices.items(), sizes, [0, *sizes], strict=False):
        rows, columns = lattice
        stages.append(Stage("coarse", size - before, rows, columns))
        left -= size - before
        if step in SHARES:
            refined = min(round(SHARES[step] * total), left)
            stages.append(Stage("refine", refined))
            left -= refined
    return (*stages, Stage("every", max(left, 0)), Stage("hold_out", held_out), Stage("interpolate", 0))


def check_grid(occlusions: Occlusions) -> Grid:
    """The occlusions, if there is an SSIM of their map; raises BindError for masks."""
    if not isinstance(occlusions, Grid):
        raise BindError("ssim compares maps over a grid, and MASKS have none: use WITH (keep => 0.999), or MODE EXACT")
    return occlusions


def _lattices(grid: Grid) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """By step the rows and columns of those lattices that fit the grid, the last row and column included."""
    found = {step: tuple(evenly(count, step) for count in grid.shape) for step in STEPS}
    return {step: (rows, columns) for step, (rows, columns) in found.items() if min(len(rows), len(columns)) >= LEAST}
