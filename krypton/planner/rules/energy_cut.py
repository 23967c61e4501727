"""energy_cut: fields are cut to where the change is, as measured on the image itself.

The rule only says so: how far deltas reach depends on weights and image, and is measured by the executor on a few positions
before it computes the others (`executor.energy`). At the same arithmetic that is far better than a geometric threshold.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.plan import QueryPlan
from krypton.planner.projection import windowed
from krypton.planner.rules.base import Context, tensor_plan
from krypton.planner.stages import MEASURED

UNCUT = "; those shown are uncut"


def energy_cut(plan: QueryPlan, context: Context) -> QueryPlan:
    """Ask for the cut, where there is something to cut; nothing without keep."""
    keep, tensor = None if plan.approximation is None else plan.approximation.keep, tensor_plan(plan)
    if keep is None or keep >= 1 or not any(windowed(node) for node in tensor.graph):
        return plan
    if plan.occlusions.count < MEASURED:
        return replace(plan, notes=(*plan.notes, "so few occlusions are not worth measuring: no field is cut"))
    note = f"fields are cut to {keep:g} of the squared change, measured as the query runs{UNCUT}"
    return replace(plan, tensor=replace(tensor, keep=keep), notes=(*plan.notes, note))
