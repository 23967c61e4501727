"""position_tiles: neighbouring occlusions are computed together, in the union of their fields, split by cost."""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.plan import QueryPlan
from krypton.planner.rules.base import Context, tensor_plan
from krypton.planner.tiles import cheapest_tiling


def position_tiles(plan: QueryPlan, context: Context) -> QueryPlan:
    """Choose the tiling by dynamic programming over the axes (see `tiles`)."""
    tensor = tensor_plan(plan)
    tiling = cheapest_tiling(tensor.graph, plan.occlusions, context.profile, context.settings)
    return replace(plan, tensor=replace(tensor, tiling=tiling))
